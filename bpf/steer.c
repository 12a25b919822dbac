/* jvp_steer (XDP): decides for every frame on the wire, before the kernel spends anything on it, whether it is
 * dropped, goes up the stack, or crosses to the CPU of the worker that owns its session.
 *
 *   1. Ethernet, IP, UDP: what is not a whole datagram for one of our ports passes.
 *   2. The header's own rules: broken ones are dropped.
 *   3. The role of its steering id: the table "Who lets what pass" in docs/protocol.md.
 *   4. The fence: past it nothing of a session is delivered, only what the supervisor answers.
 *   5. Delivery: to the owner's CPU, or up the stack where the reuseport program (pick.c) chooses the socket.
 *
 * This is speed and shelter. The worker judges every datagram again: it alone sees inside a GRO superpacket, and
 * an entry of `ids` or `bound` that is deleted while it is read here may already hold another session's values.
 */
#include "jvp.h"

/* GCRA (ITU-T I.371). The addition is atomic; two CPUs that find the bucket idle at once let one datagram too many
 * pass, which shelter can bear and which needs no lock. */
static __always_inline int admit(u64 *arrival_ns, u64 interval_ns, u64 burst_ns, u64 now_ns)
{
	u64 arrival = *arrival_ns;

	if (arrival < now_ns)
		*arrival_ns = arrival = now_ns;
	if (arrival - now_ns > burst_ns)
		return 0;
	__sync_fetch_and_add(arrival_ns, interval_ns);
	return 1;
}

/* The source's bucket stands before the global one, so that one flooding source does not empty it for all. */
static __always_inline u32 unauthenticated(const struct datagram *datagram, const struct settings_entry *config,
					   u32 passes)
{
	union address key = datagram->source;
	u64 now_ns = bpf_ktime_get_boot_ns(), first_ns = now_ns + config->source.interval_ns, *arrival_ns;
	u32 zero = 0;

	if (key.half[0]) /* whoever has one address of an IPv6 /64 has them all */
		key.half[1] = 0;
	arrival_ns = source_buckets.lookup(&key);
	if (!arrival_ns)
		source_buckets.update(&key, &first_ns);
	else if (!admit(arrival_ns, config->source.interval_ns, config->source.burst_ns, now_ns))
		return JVP_COUNT_DROP_BUCKET_SOURCE;
	arrival_ns = global_bucket.lookup(&zero);
	if (arrival_ns && !admit(arrival_ns, config->global.interval_ns, config->global.burst_ns, now_ns))
		return JVP_COUNT_DROP_BUCKET_GLOBAL;
	return passes;
}

static __always_inline u32 within_id_bucket(u64 id, const struct settings_entry *config, u32 passes)
{
	u64 now_ns = bpf_ktime_get_boot_ns();
	struct id_bucket *bucket = id_buckets.lookup(&id);
	struct id_bucket fresh = {.arrival_ns = now_ns + config->id.interval_ns};

	if (!bucket)
		id_buckets.update(&id, &fresh);
	else if (!admit(&bucket->arrival_ns, config->id.interval_ns, config->id.burst_ns, now_ns))
		return JVP_COUNT_DROP_BUCKET_ID;
	return passes;
}

/* A stranger who has seen an id can send REQUESTs on it, which nobody can tell from genuine ones before their proof.
 * They have a bucket of their own: neither do they use up that of probes, nor these theirs. */
static __always_inline u32 reattach(u64 id)
{
	u64 now_ns = bpf_ktime_get_boot_ns();
	struct id_bucket *bucket = id_buckets.lookup(&id);
	struct id_bucket fresh = {.reattach_ns = now_ns + JVP_REATTACH_INTERVAL_NS};

	if (!bucket)
		id_buckets.update(&id, &fresh);
	else if (!admit(&bucket->reattach_ns, JVP_REATTACH_INTERVAL_NS, JVP_REATTACH_BURST_NS, now_ns))
		return JVP_COUNT_DROP_BUCKET_ID;
	return JVP_COUNT_PASS_REATTACH;
}

/* DATA from a source that the id is not bound to: one a second lets the worker find out that a NAT has rebound. */
static __always_inline u32 sample(u64 id)
{
	u64 now_ns = bpf_ktime_get_boot_ns();
	struct id_bucket *bucket = id_buckets.lookup(&id);
	struct id_bucket fresh = {.sample_ns = now_ns + JVP_SAMPLE_INTERVAL_NS};

	if (!bucket)
		id_buckets.update(&id, &fresh);
	else if (!admit(&bucket->sample_ns, JVP_SAMPLE_INTERVAL_NS, 0, now_ns))
		return JVP_COUNT_DROP_WRONG_SOURCE;
	return JVP_COUNT_OWNER_SAMPLE;
}

static __always_inline int from_bound_source(const struct datagram *datagram, const struct id_entry *entry)
{
	return datagram->source.half[0] == entry->source.half[0] &&
	       datagram->source.half[1] == entry->source.half[1] && datagram->source_port == entry->port;
}

static __always_inline u32 judge_pending(u8 type, const struct datagram *datagram, const struct id_entry *entry)
{
	if (type != JVP_TYPE_CONTROL)
		return JVP_COUNT_DROP_WRONG_ROLE;
	return from_bound_source(datagram, entry) ? JVP_COUNT_PASS_CONTROL : JVP_COUNT_DROP_WRONG_SOURCE;
}

static __always_inline u32 judge_installed(u8 type, u64 id, const struct settings_entry *config)
{
	if (type == JVP_TYPE_REATTACH_REQUEST)
		return reattach(id);
	if (type == JVP_TYPE_PATH)
		return within_id_bucket(id, config, JVP_COUNT_OWNER_PATH);
	if (is_data(type))
		return within_id_bucket(id, config, JVP_COUNT_OWNER_DATA);
	return JVP_COUNT_DROP_WRONG_ROLE;
}

static __always_inline u32 judge_bound(u8 type, u64 id, const struct datagram *datagram,
				       const struct id_entry *entry, const struct settings_entry *config)
{
	if (type == JVP_TYPE_REATTACH_REQUEST)
		return reattach(id);
	if (entry->role == JVP_ROLE_DRAINING && bpf_ktime_get_boot_ns() >= entry->drain_until_ns)
		return JVP_COUNT_DROP_DRAINED;
	if (is_data(type))
		return from_bound_source(datagram, entry) ? JVP_COUNT_OWNER_DATA : sample(id);
	if (type == JVP_TYPE_PATH)
		/* Probes of the path in use never share a bucket with what others send to its id. */
		return from_bound_source(datagram, entry) ? JVP_COUNT_OWNER_PATH
							  : within_id_bucket(id, config, JVP_COUNT_OWNER_PATH);
	return type == JVP_TYPE_CONTROL ? JVP_COUNT_PASS_CONTROL : JVP_COUNT_DROP_WRONG_ROLE;
}

/* Whether the sender is the one that the id is bound to: in `bound` is nothing that `ids` does not say too. What is not
 * found may be bound all the same. */
static __always_inline int in_bound(u64 id, const struct datagram *datagram, u32 *slot)
{
	u32 index = (id & 0xffffffff) * JVP_BOUND_BUCKETS >> 32;
	struct bound_bucket *bucket = bound.lookup(&index);

	if (!bucket || !id)
		return 0;
#pragma unroll /* kernels before 5.3 refuse loops */
	for (int i = 0; i < JVP_BOUND_PLACES; i++) {
		struct bound_id *place = &bucket->places[i];

		if (place->id != id || datagram->source.half[0] != place->source.half[0] ||
		    datagram->source.half[1] != place->source.half[1] || datagram->source_port != place->port)
			continue;
		*slot = place->slot;
		return 1;
	}
	return 0;
}

static __always_inline u32 judge(const struct datagram *datagram, const struct settings_entry *config, u32 *slot)
{
	u8 type = datagram->payload[0];
	/* At an odd offset: the verifier allows that where the CPU does (x86, arm64). */
	u64 id = *(u64 *)(datagram->payload + JVP_OFFSET_STEERING_ID);
	struct id_entry *entry;

	if (type == JVP_TYPE_HANDSHAKE_INIT) /* its id is the client's random bytes */
		return unauthenticated(datagram, config, JVP_COUNT_PASS_HANDSHAKE);
	/* Nearly every datagram; its row of the table is judge_bound's. */
	if ((is_data(type) || type == JVP_TYPE_PATH) && in_bound(id, datagram, slot))
		return type == JVP_TYPE_PATH ? JVP_COUNT_OWNER_PATH : JVP_COUNT_OWNER_DATA;
	entry = ids.lookup(&id);
	if (!entry)
		return type == JVP_TYPE_REATTACH_REQUEST ?
			       unauthenticated(datagram, config, JVP_COUNT_PASS_REATTACH_UNKNOWN) :
			       JVP_COUNT_DROP_UNKNOWN_ID;
	*slot = entry->slot;
	switch (entry->role) {
	case JVP_ROLE_PENDING:
		return judge_pending(type, datagram, entry);
	case JVP_ROLE_INSTALLED:
		return judge_installed(type, id, config);
	case JVP_ROLE_ACTIVE:
	case JVP_ROLE_DRAINING:
		return judge_bound(type, id, datagram, entry, config);
	default:
		return JVP_COUNT_DROP_WRONG_ROLE;
	}
}

static __always_inline int fenced(void)
{
	u32 zero = 0;
	u64 *until_ns = fence.lookup(&zero);

	return until_ns && *until_ns && bpf_ktime_get_boot_ns() >= *until_ns;
}

static __always_inline int to_owner(u32 slot, const struct settings_entry *config)
{
	struct slot_entry *owner = slots.lookup(&slot);

	if (!owner || !(config->flags & JVP_FLAG_CPUMAP) || owner->cpu == JVP_ANY_CPU ||
	    owner->cpu == bpf_get_smp_processor_id())
		return XDP_PASS;
	count(JVP_COUNT_REDIRECTED);
	return cpus.redirect_map(owner->cpu, XDP_PASS); /* the flag is the verdict when that CPU has no queue */
}

int jvp_steer(struct xdp_md *ctx)
{
	struct cursor cursor = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
	struct datagram datagram = {};
	u32 zero = 0, slot = 0, verdict;
	struct settings_entry *config = settings.lookup(&zero);

	if (!config)
		return XDP_PASS;
	verdict = parse_frame(&cursor, config, &datagram);
	if (!verdict && (datagram.length < JVP_HEADER_SIZE || !take(&cursor, JVP_HEADER_SIZE)))
		verdict = JVP_COUNT_DROP_TRUNCATED;
	if (!verdict)
		verdict = check_header(datagram.payload, datagram.length, config->flags);
	if (!verdict)
		verdict = judge(&datagram, config, &slot);
	if (verdict >= JVP_FIRST_OWNER && verdict < JVP_FIRST_DROP && fenced())
		verdict = JVP_COUNT_DROP_FENCED;
	count(verdict);
	if (verdict >= JVP_FIRST_DROP)
		return XDP_DROP;
	return verdict >= JVP_FIRST_OWNER ? to_owner(slot, config) : XDP_PASS;
}
