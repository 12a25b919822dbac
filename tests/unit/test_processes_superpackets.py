"""The unit of work is the superpacket: how many calls one of them costs a worker, in either direction."""

from test_wire_datagrams import superpacket
from test_worker_pipelines import CLIENT, GATEWAY, Worker

from workers.counters import Counter

CALLS = (
    Counter.TUN_READS,
    Counter.TUN_WRITES,
    Counter.UDP_READS,
    Counter.UDP_WRITES,
    Counter.DATAGRAMS_SENT,
    Counter.DATAGRAMS_RECEIVED,
)


def calls(worker: Worker) -> dict[Counter, int]:
    return {counter: worker.counters[counter] for counter in CALLS}


def test_a_superpacket_is_one_read_and_one_send_and_arrives_by_one_read_and_one_write() -> None:
    gateway, client = Worker(), Worker(gateway=False)
    for number in range(3):  # the first makes the layout, the others use it
        before, then = calls(gateway), calls(client)
        payload = bytes((number,)) * 60_000
        gateway.tun.pending.append(superpacket(payload, 1_000))
        gateway.turn()
        spent = {counter: calls(gateway)[counter] - before[counter] for counter in CALLS}
        assert spent[Counter.DATAGRAMS_SENT] == 60
        assert (spent[Counter.TUN_READS], spent[Counter.UDP_WRITES]) == (1, 1)
        sent = [sealed for to, sealed in gateway.take_sent() if to == CLIENT]
        (arrived,) = client.get(*sent, source=GATEWAY, now_ns=number + 1)
        assert arrived[40:] == payload
        spent = {counter: calls(client)[counter] - then[counter] for counter in CALLS}
        assert spent[Counter.DATAGRAMS_RECEIVED] == 60
        assert (spent[Counter.UDP_READS], spent[Counter.TUN_WRITES]) == (1, 1)


def test_of_a_superpacket_that_lost_datagrams_the_rest_arrives() -> None:
    gateway, client = Worker(), Worker(gateway=False)
    payload = bytes(range(250)) * 240
    gateway.tun.pending.append(superpacket(payload, 1_000))
    gateway.turn()
    sent = [sealed for _to, sealed in gateway.take_sent()]
    arrived = client.get(*(sealed for n, sealed in enumerate(sent) if n not in (7, 30)), source=GATEWAY)
    assert sum(len(packet) - 40 for packet in arrived) == 58_000
