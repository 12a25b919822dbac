/* What the three programs share: the packet format, the maps, the counters, and how a frame is parsed.
 *
 * bcc compiles this header and the three programs as one module, so that they share the maps. A map's methods
 * (`ids.lookup(&key)`) are bcc's; it rewrites them only where the map is named literally, so no function here
 * takes a map as an argument. Numbers of the protocol stand in jvpn/protocol/constants.py too; the layouts and
 * counters are read by jvpn/supervisor/steering.py. A test holds them against each other.
 */
#ifndef JVP_H
#define JVP_H

#include <uapi/linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

/* --- the packet format (docs/protocol.md, "Header") ----------------------------------------------------- */

#define JVP_VERSION 1
#define JVP_HEADER_SIZE 20
#define JVP_OFFSET_STEERING_ID 4
#define JVP_OFFSET_COUNTER 12
#define JVP_TAG_SIZE 16
#define JVP_REATTACH_REQUEST_SIZE 256

enum jvp_type {
	JVP_TYPE_HANDSHAKE_INIT = 0x01,
	JVP_TYPE_HANDSHAKE_RESPONSE = 0x02,
	JVP_TYPE_COOKIE = 0x03,
	JVP_TYPE_REATTACH_REQUEST = 0x10,
	JVP_TYPE_REATTACH_ACK = 0x11,
	JVP_TYPE_REATTACH_FAIL = 0x12,
	JVP_TYPE_DATA = 0x20,
	JVP_TYPE_CONTROL = 0x21,
	JVP_TYPE_PATH = 0x22,
	JVP_TYPE_FRAGMENT = 0x23,
	JVP_TYPE_RESENT = 0x24,
	JVP_TYPE_RESET = 0x30,
};

enum jvp_role {
	JVP_ROLE_PENDING = 1,
	JVP_ROLE_INSTALLED = 2,
	JVP_ROLE_ACTIVE = 3,
	JVP_ROLE_DRAINING = 4,
};

#define JVP_SLOT_SUPERVISOR 0
#define JVP_SLOT_UNAUTHENTICATED 1
#define JVP_SLOT_FIRST_WORKER 2

/* --- this implementation's bounds; the loader gives the first two on the command line ----------------------- */

#ifndef JVP_CAPACITY
#define JVP_CAPACITY 262144
#endif
#ifndef JVP_CPUS /* a CPUMAP larger than the kernel's NR_CPUS is refused */
#define JVP_CPUS 1
#endif
#define JVP_MAX_SLOTS 256
#define JVP_MAX_PORTS 8
#define JVP_BUCKETS 65536
#define JVP_BOUND_PLACES 4
/* With JVP_CAPACITY ids there, all of them bound, one in 27 finds its bucket full. */
#define JVP_BOUND_BUCKETS (JVP_CAPACITY / 2 + 1)
#define JVP_ANY_CPU 0xffffffff
#define JVP_SAMPLE_INTERVAL_NS 1000000000ULL
/* REQUESTs on an installed id, 200 a second and 100 at once: far above what the supervisor takes, so that this is its
 * shelter and never what holds a client back. */
#define JVP_REATTACH_INTERVAL_NS 5000000ULL
#define JVP_REATTACH_BURST_NS (99 * JVP_REATTACH_INTERVAL_NS)

#define JVP_FLAG_CPUMAP 1       /* frames may be redirected to the owner's CPU */
#define JVP_FLAG_SUPERPACKETS 2 /* generic XDP runs behind GRO: one header may stand for many datagrams */

/* --- counters: one for every reason to pass, to deliver or to drop -------------------------------------------- */

enum jvp_counter {
	JVP_COUNT_NONE, /* nothing to say yet: go on */
	JVP_COUNT_PASS_NOT_OURS,
	JVP_COUNT_PASS_FRAGMENT,
	JVP_COUNT_PASS_EXTENSION_HEADER,
	JVP_COUNT_PASS_HANDSHAKE,
	JVP_COUNT_PASS_REATTACH_UNKNOWN,
	JVP_COUNT_PASS_REATTACH,
	JVP_COUNT_PASS_CONTROL,
	JVP_COUNT_OWNER_DATA,
	JVP_COUNT_OWNER_PATH,
	JVP_COUNT_OWNER_SAMPLE,
	JVP_COUNT_DROP_TRUNCATED,
	JVP_COUNT_DROP_UNKNOWN_TYPE,
	JVP_COUNT_DROP_BAD_VERSION,
	JVP_COUNT_DROP_RESERVED_BITS,
	JVP_COUNT_DROP_BAD_LENGTH,
	JVP_COUNT_DROP_UNKNOWN_ID,
	JVP_COUNT_DROP_WRONG_ROLE,
	JVP_COUNT_DROP_WRONG_SOURCE,
	JVP_COUNT_DROP_DRAINED,
	JVP_COUNT_DROP_BUCKET_GLOBAL,
	JVP_COUNT_DROP_BUCKET_SOURCE,
	JVP_COUNT_DROP_BUCKET_ID,
	JVP_COUNT_DROP_FENCED,
	JVP_COUNT_REDIRECTED, /* of the OWNER ones, those that crossed to another CPU */
	JVP_COUNT_PICK_SUPERVISOR,
	JVP_COUNT_PICK_UNAUTHENTICATED,
	JVP_COUNT_PICK_OWNER,
	JVP_COUNT_TUN_OWNER,
	JVP_COUNT_TUN_DEFAULT,
	JVP_COUNTERS,
};
#define JVP_FIRST_OWNER JVP_COUNT_OWNER_DATA
#define JVP_FIRST_DROP JVP_COUNT_DROP_TRUNCATED

/* --- maps ------------------------------------------------------------------------------------------------------- */

/* 16 bytes; IPv4 as ::ffff:a.b.c.d. */
union address {
	__be32 word[4];
	u64 half[2];
};

struct id_entry {
	u32 slot;
	u8 role;
	u8 zero;
	__be16 port;
	union address source; /* what the id is bound to, with `port` */
	u64 drain_until_ns; /* CLOCK_BOOTTIME, for JVP_ROLE_DRAINING */
};

/* What is bound to `source` and `port`, with JVP_ROLE_ACTIVE; id 0: nothing. */
struct bound_id {
	u64 id;
	union address source;
	__be16 port;
	u16 slot;
	u32 zero;
};

struct bound_bucket {
	struct bound_id places[JVP_BOUND_PLACES];
};

/* Each program reads one field only, so a torn write of an entry cannot mix two workers. */
struct slot_entry {
	u32 cpu;
	u32 socket;
	u32 queue;
};

/* One datagram every interval_ns in the long run, burst_ns ahead of it at most; interval 0: no limit. */
struct rate {
	u64 interval_ns;
	u64 burst_ns;
};

struct settings_entry {
	struct rate global;
	struct rate source;
	struct rate id;
	u32 flags;
	__be16 ports[JVP_MAX_PORTS]; /* zero: unused */
	u32 zero;
};

/* Theoretical arrival times of GCRA (ITU-T I.371): of PATH and DATA, of wrong-source samples, of REQUESTs. */
struct id_bucket {
	u64 arrival_ns;
	u64 sample_ns;
	u64 reattach_ns;
};

struct inner4_key {
	u32 prefix_bits;
	u8 address[4];
};

struct inner6_key {
	u32 prefix_bits;
	u8 address[16];
};

/* steering id, as its bytes stand in the packet → who owns it and what it may be used for. */
BPF_HASH(ids, u64, struct id_entry, JVP_CAPACITY);
/* What of `ids` has JVP_ROLE_ACTIVE, by the range in which the id's first 32 bits lie; ids are pseudo-random. A lookup in
 * an array is a few instructions in place; one in a hash calls the kernel, which costs several returns. The supervisor
 * writes it through shared memory: jvpn/supervisor/bound_table.py. */
BPF_F_TABLE("array", u32, struct bound_bucket, bound, JVP_BOUND_BUCKETS, BPF_F_MMAPABLE);
/* slot → the worker's CPU, its socket in the reuseport group and its TUN queue: one write moves a worker. */
BPF_ARRAY(slots, struct slot_entry, JVP_MAX_SLOTS);
/* inner IPv4 destination prefix → slot. */
BPF_LPM_TRIE(inner4, struct inner4_key, u32, JVP_CAPACITY);
/* inner IPv6 destination prefix → slot. */
BPF_LPM_TRIE(inner6, struct inner6_key, u32, JVP_CAPACITY);
/* CPU → the queue through which frames cross to it. */
BPF_CPUMAP(cpus, JVP_CPUS);
/* 0 → ports, flags and bucket rates. */
BPF_ARRAY(settings, struct settings_entry, 1);
/* 0 → when this gateway's sessions may be another's, CLOCK_BOOTTIME in ns; 0: never. */
BPF_ARRAY(fence, u64, 1);
/* enum jvp_counter → how often, on each CPU. */
BPF_PERCPU_ARRAY(counters, u64, JVP_COUNTERS);
/* 0 → the bucket that all unauthenticated datagrams share. */
BPF_ARRAY(global_bucket, u64, 1);
/* source address, IPv6 by its /64 → the bucket of its unauthenticated datagrams. */
BPF_TABLE("lru_hash", union address, u64, source_buckets, JVP_BUCKETS);
/* steering id → the buckets of what it may send before its source is proven. */
BPF_TABLE("lru_hash", u64, struct id_bucket, id_buckets, JVP_BUCKETS);

static __always_inline void count(u32 counter)
{
	u64 *value = counters.lookup(&counter);

	if (value)
		(*value)++; /* per CPU, and BPF is not preempted by itself there: no atomic needed */
}

static __always_inline int is_data(u8 type)
{
	return type == JVP_TYPE_DATA || type == JVP_TYPE_FRAGMENT || type == JVP_TYPE_RESENT;
}

/* --- parsing ------------------------------------------------------------------------------------------------------ */

struct cursor {
	void *position;
	void *end;
};

/* The next `bytes` bytes, or NULL. The comparison is the one that the verifier wants to see before any access. */
static __always_inline void *take(struct cursor *cursor, u32 bytes)
{
	void *start = cursor->position;

	if (start + bytes > cursor->end)
		return NULL;
	cursor->position = start + bytes;
	return start;
}

/* A UDP datagram of ours: where from, how long its payload is, and where that begins. */
struct datagram {
	union address source;
	__be16 source_port;
	u32 length;
	u8 *payload;
};

/* Each parse_*() returns JVP_COUNT_NONE, or the counter under which the frame leaves. */
static __always_inline u32 parse_ipv4(struct cursor *cursor, struct datagram *datagram)
{
	struct iphdr *ip = take(cursor, sizeof(*ip));

	if (!ip || ip->protocol != IPPROTO_UDP || ip->ihl < 5)
		return JVP_COUNT_PASS_NOT_OURS;
	if (ip->frag_off & bpf_htons(0x3fff)) /* "more fragments", or an offset */
		return JVP_COUNT_PASS_FRAGMENT;
	datagram->source.half[0] = 0;
	datagram->source.word[2] = bpf_htonl(0xffff);
	datagram->source.word[3] = ip->saddr;
	if (ip->ihl > 5 && !take(cursor, (ip->ihl - 5) * 4))
		return JVP_COUNT_PASS_NOT_OURS;
	return JVP_COUNT_NONE;
}

static __always_inline u32 parse_ipv6(struct cursor *cursor, struct datagram *datagram)
{
	struct ipv6hdr *ip = take(cursor, sizeof(*ip));

	if (!ip)
		return JVP_COUNT_PASS_NOT_OURS;
	switch (ip->nexthdr) {
	case IPPROTO_UDP:
		break;
	case IPPROTO_FRAGMENT:
		return JVP_COUNT_PASS_FRAGMENT;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
		return JVP_COUNT_PASS_EXTENSION_HEADER;
	default:
		return JVP_COUNT_PASS_NOT_OURS;
	}
	__builtin_memcpy(&datagram->source, &ip->saddr, sizeof(datagram->source));
	return JVP_COUNT_NONE;
}

static __always_inline int is_our_port(const struct settings_entry *config, __be16 port)
{
#pragma unroll /* kernels before 5.3 refuse loops */
	for (int i = 0; i < JVP_MAX_PORTS; i++)
		if (config->ports[i] == port)
			return port != 0;
	return 0;
}

/* Ethernet to UDP: finds a datagram for one of our ports, long enough or not. */
static __always_inline u32 parse_frame(struct cursor *cursor, const struct settings_entry *config,
				       struct datagram *datagram)
{
	struct ethhdr *ethernet = take(cursor, sizeof(*ethernet));
	struct udphdr *udp;
	u32 leave = JVP_COUNT_PASS_NOT_OURS;

	if (!ethernet)
		return leave;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		leave = parse_ipv4(cursor, datagram);
	else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		leave = parse_ipv6(cursor, datagram);
	if (leave)
		return leave;
	udp = take(cursor, sizeof(*udp));
	if (!udp || !is_our_port(config, udp->dest))
		return JVP_COUNT_PASS_NOT_OURS;
	datagram->source_port = udp->source;
	datagram->payload = cursor->position;
	datagram->length = bpf_ntohs(udp->len) - sizeof(*udp);
	/* Also catches a UDP length below 8, which wraps. Ethernet pads, so the frame may be longer. */
	if (datagram->length > (u32)(cursor->end - cursor->position))
		return JVP_COUNT_DROP_TRUNCATED;
	return JVP_COUNT_NONE;
}

/* The header's own rules, in the order in which jvpn/protocol/wire.py judges them. */
static __always_inline u32 check_header(const u8 *header, u32 length, u32 flags)
{
	u8 type = header[0];
	int counterless = 0, handshake = 0;

	switch (type) {
	case JVP_TYPE_HANDSHAKE_INIT:
	case JVP_TYPE_HANDSHAKE_RESPONSE:
	case JVP_TYPE_COOKIE:
		handshake = counterless = 1;
		break;
	case JVP_TYPE_REATTACH_ACK:
	case JVP_TYPE_REATTACH_FAIL:
	case JVP_TYPE_RESET:
		counterless = 1;
		break;
	case JVP_TYPE_REATTACH_REQUEST:
	case JVP_TYPE_DATA:
	case JVP_TYPE_CONTROL:
	case JVP_TYPE_PATH:
	case JVP_TYPE_FRAGMENT:
	case JVP_TYPE_RESENT:
		break;
	default:
		return JVP_COUNT_DROP_UNKNOWN_TYPE;
	}
	if (header[1] >> 4 != JVP_VERSION)
		return JVP_COUNT_DROP_BAD_VERSION;
	if (header[3] || (header[2] && !handshake))
		return JVP_COUNT_DROP_RESERVED_BITS;
	if (counterless && (header[1] & 15 || *(u64 *)(header + JVP_OFFSET_COUNTER)))
		return JVP_COUNT_DROP_RESERVED_BITS;
	if (length < JVP_HEADER_SIZE + JVP_TAG_SIZE)
		return JVP_COUNT_DROP_BAD_LENGTH;
	if (flags & JVP_FLAG_SUPERPACKETS) /* the first datagram's end cannot be seen */
		return type == JVP_TYPE_REATTACH_REQUEST && length < JVP_REATTACH_REQUEST_SIZE ?
			       JVP_COUNT_DROP_BAD_LENGTH : JVP_COUNT_NONE;
	if (type == JVP_TYPE_REATTACH_REQUEST && length != JVP_REATTACH_REQUEST_SIZE)
		return JVP_COUNT_DROP_BAD_LENGTH;
	if (type == JVP_TYPE_RESET && length != JVP_HEADER_SIZE + JVP_TAG_SIZE)
		return JVP_COUNT_DROP_BAD_LENGTH;
	return JVP_COUNT_NONE;
}
#endif
