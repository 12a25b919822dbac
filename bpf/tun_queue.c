/* jvp_tun_queue (TUNSETSTEERINGEBPF): chooses the TUN queue, and with it the worker, for a packet from the inner
 * network by its destination. Queue 0 takes what no session owns; its worker counts and drops it.
 *
 * Here skb->data is at the IP header: a TUN has no link header, and the virtio header is written when the queue is
 * read. The kernel takes the result modulo the number of queues.
 */
#include "jvp.h"

#define OFFSET_IPV4_DESTINATION 16
#define OFFSET_IPV6_DESTINATION 24

static __always_inline u32 *slot_of_ipv4(struct __sk_buff *skb)
{
	struct inner4_key key = {.prefix_bits = 32};

	if (bpf_skb_load_bytes(skb, OFFSET_IPV4_DESTINATION, key.address, sizeof(key.address)))
		return NULL;
	return inner4.lookup(&key);
}

static __always_inline u32 *slot_of_ipv6(struct __sk_buff *skb)
{
	struct inner6_key key = {.prefix_bits = 128};

	if (bpf_skb_load_bytes(skb, OFFSET_IPV6_DESTINATION, key.address, sizeof(key.address)))
		return NULL;
	return inner6.lookup(&key);
}

int jvp_tun_queue(struct __sk_buff *skb)
{
	u8 version = 0;
	u32 *slot = NULL;
	struct slot_entry *owner = NULL;

	bpf_skb_load_bytes(skb, 0, &version, sizeof(version));
	if (version >> 4 == 4)
		slot = slot_of_ipv4(skb);
	else if (version >> 4 == 6)
		slot = slot_of_ipv6(skb);
	if (slot)
		owner = slots.lookup(slot);
	if (!owner) {
		count(JVP_COUNT_TUN_DEFAULT);
		return 0;
	}
	count(JVP_COUNT_TUN_OWNER);
	return owner->queue;
}
