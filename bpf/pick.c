/* jvp_pick (SO_ATTACH_REUSEPORT_EBPF): chooses the socket of the SO_REUSEPORT group for a datagram that reached UDP.
 *
 * It works without steer.c too, where nothing was filtered before: every datagram gets a socket, none is dropped.
 * Here skb->data is at the UDP payload, also of GRO superpackets (whose first header stands for all) and on
 * dual-stack sockets. A socket filter may not read packet memory directly, hence bpf_skb_load_bytes.
 */
#include "jvp.h"

static __always_inline u32 worker_socket(u32 slot)
{
	struct slot_entry *owner = slots.lookup(&slot);

	return owner && owner->socket >= JVP_SLOT_FIRST_WORKER ? owner->socket : JVP_SLOT_UNAUTHENTICATED;
}

static __always_inline u32 pick_for_known(u8 type, const struct id_entry *entry)
{
	switch (type) {
	case JVP_TYPE_REATTACH_REQUEST:
	case JVP_TYPE_CONTROL:
		return JVP_SLOT_SUPERVISOR;
	case JVP_TYPE_DATA:
	case JVP_TYPE_PATH:
	case JVP_TYPE_FRAGMENT:
	case JVP_TYPE_RESENT:
		return worker_socket(entry->slot);
	default:
		return JVP_SLOT_UNAUTHENTICATED;
	}
}

int jvp_pick(struct __sk_buff *skb)
{
	u8 type = 0;
	u64 id = 0;
	u32 socket = JVP_SLOT_UNAUTHENTICATED;
	struct id_entry *entry;

	if (!bpf_skb_load_bytes(skb, 0, &type, sizeof(type)) &&
	    !bpf_skb_load_bytes(skb, JVP_OFFSET_STEERING_ID, &id, sizeof(id))) {
		entry = ids.lookup(&id);
		if (entry)
			socket = pick_for_known(type, entry);
	}
	if (socket == JVP_SLOT_SUPERVISOR)
		count(JVP_COUNT_PICK_SUPERVISOR);
	else if (socket == JVP_SLOT_UNAUTHENTICATED)
		count(JVP_COUNT_PICK_UNAUTHENTICATED);
	else
		count(JVP_COUNT_PICK_OWNER);
	return socket;
}
