/* Programs for steering.py, compiled as one module with bpf/jvp.h and bpf/steer.c, so that they share the map `ids`.
 *
 * bench_fill copies the entry of the packet's steering id under further ids, into `bound` too, as the supervisor does;
 * bench_empty and bench_same leave the packet as it is. The others write a random one of these ids into the packet, a
 * DATA datagram over IPv4, and differ in what follows: nothing, a lookup, a lookup and a look at the entry's source, or
 * the real program.
 */
#define BENCH_ID_OFFSET (sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr) + JVP_OFFSET_STEERING_ID)

/* 0: runs so far; 1: ids that were filled in. */
BPF_ARRAY(bench_numbers, u64, 2);

/* The finalizer of MurmurHash3: a bijection, so that numbers below the count give as many different ids. */
static __always_inline u64 bench_mix(u64 value)
{
	value ^= value >> 33;
	value *= 0xff51afd7ed558ccdULL;
	value ^= value >> 33;
	value *= 0xc4ceb9fe1a85ec53ULL;
	return value ^ value >> 33;
}

/* Which run this is, from 0 on. Of one program on one CPU at a time: no atomic needed. */
static __always_inline u64 bench_run(void)
{
	u32 key = 0;
	u64 *runs = bench_numbers.lookup(&key);

	return runs ? (*runs)++ : 0;
}

static __always_inline u64 *bench_id(struct xdp_md *ctx)
{
	void *id = (void *)(long)ctx->data + BENCH_ID_OFFSET;

	return id + sizeof(u64) > (void *)(long)ctx->data_end ? NULL : id;
}

/* Puts one of the filled ids into the packet; 0 when there is no room for one. */
static __always_inline u64 bench_generate_id(struct xdp_md *ctx)
{
	u32 key = 1;
	u64 *filled = bench_numbers.lookup(&key), *place = bench_id(ctx), id;

	if (!filled || !place)
		return 0;
	/* Numbers in order would walk the map's elements in the order in which they lie in memory. */
	id = bench_mix((bench_mix(bench_run()) >> 32) * *filled >> 32);
	*place = id;
	return id;
}

static __always_inline void bench_bind(u64 id, const struct id_entry *entry)
{
	u32 index = (id & 0xffffffff) * JVP_BOUND_BUCKETS >> 32;
	struct bound_bucket *bucket = bound.lookup(&index);

	if (!bucket)
		return;
#pragma unroll
	for (int i = 0; i < JVP_BOUND_PLACES; i++) {
		struct bound_id *place = &bucket->places[i];

		if (place->id)
			continue;
		place->source = entry->source;
		place->port = entry->port;
		place->slot = entry->slot;
		place->id = id;
		return;
	}
}

int bench_fill(struct xdp_md *ctx)
{
	u64 *place = bench_id(ctx), template_id, id;
	struct id_entry *template, entry;

	if (!place)
		return XDP_ABORTED;
	template_id = *place;
	template = ids.lookup(&template_id);
	if (!template)
		return XDP_ABORTED;
	entry = *template;
	id = bench_mix(bench_run());
	if (ids.update(&id, &entry))
		return XDP_ABORTED;
	bench_bind(id, &entry);
	return XDP_PASS;
}

int bench_empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* The lookup of a hot key: of whatever id the packet has. */
int bench_same(struct xdp_md *ctx)
{
	u64 *place = bench_id(ctx), id;

	if (!place)
		return XDP_ABORTED;
	id = *place;
	return ids.lookup(&id) ? XDP_PASS : XDP_DROP;
}

int bench_generate(struct xdp_md *ctx)
{
	return bench_generate_id(ctx) ? XDP_PASS : XDP_ABORTED;
}

int bench_lookup(struct xdp_md *ctx)
{
	u64 id = bench_generate_id(ctx);

	return ids.lookup(&id) ? XDP_PASS : XDP_ABORTED;
}

int bench_read(struct xdp_md *ctx)
{
	u64 id = bench_generate_id(ctx);
	struct id_entry *entry = ids.lookup(&id);

	return entry && entry->source.half[1] ? XDP_PASS : XDP_ABORTED;
}

int bench_steer(struct xdp_md *ctx)
{
	bench_generate_id(ctx);
	return bench_real(ctx); /* jvp_steer's body: see steering_programs.py */
}
