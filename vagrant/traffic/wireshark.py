"""Make the Wireshark dissector out of the description that Scapy's layers are: vagrant/traffic/jvp.lua.

    python -m vagrant.traffic.wireshark > vagrant/traffic/jvp.lua

It has the fields that are in clear, of every type; what is sealed is bytes. A test holds the file to what this makes.
"""

import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from scapy.fields import BitField, ByteEnumField, ByteField, LongField, XStrField, XStrFixedLenField
from scapy.packet import Packet

from jvpn.protocol.constants import HEADER_SIZE, VERSION, PacketType
from vagrant.traffic.jvp import JVP, LAYERS, PORT, SIZES

_HEAD: Final = """\
-- Jumping VPN, JVP/1: a dissector for Wireshark and tshark. What it shows and how it is installed: docs/traffic.md.
-- Made by `python -m vagrant.traffic.wireshark` from the layers in vagrant/traffic/jvp.py: change those.
"""
_BODY: Final = """\
local unsuited = ProtoField.bytes("jvp.unsuited", "bytes of a size that the type does not have")
local bad_length = ProtoExpert.new(
  "jvp.bad_length", "the size does not suit the type", expert.group.MALFORMED, expert.severity.ERROR)

local fields = { unsuited }
local function declare(rows)
  for _, row in ipairs(rows) do table.insert(fields, row[1]) end
end
declare(HEADER)
for _, layer in pairs(LAYERS) do declare(layer.fields) end
jvp.fields = fields
jvp.experts = { bad_length }
jvp.prefs.ports = Pref.range("UDP ports", PORTS, "UDP ports of gateways", 65535)

local function add(tree, bytes, rows)
  for _, row in ipairs(rows) do
    local field, at, size = row[1], row[2], row[3]
    if at < 0 then at = bytes:len() + at end
    if size < 0 then size = bytes:len() - at + size end
    tree:add(field, bytes(at, size))
  end
end

function jvp.dissector(datagram, packet, tree)
  -- What was sent, and what the capture has of it.
  local size, captured = datagram:reported_len(), datagram:len()
  if captured < HEADER_SIZE then return 0 end
  local layer = LAYERS[datagram(0, 1):uint()]
  if layer == nil or datagram(1, 1):bitfield(0, 4) ~= VERSION then return 0 end
  packet.cols.protocol = "JVP"
  packet.cols.info = layer.name .. " " .. tostring(datagram(4, 8):bytes()):lower()
    .. " counter " .. tostring(datagram(12, 8):uint64()) .. " length " .. size
  local top = tree:add(jvp, datagram())
  top:append_text(", " .. layer.name)
  add(top, datagram(0, HEADER_SIZE):tvb(), HEADER)
  if size < layer.shortest or size > layer.longest then
    top:add_proto_expert_info(bad_length)
    if captured > HEADER_SIZE then top:add(unsuited, datagram(HEADER_SIZE)) end
  elseif captured == size then
    add(top:add(jvp, datagram(HEADER_SIZE), layer.name), datagram(HEADER_SIZE):tvb(), layer.fields)
  end
  return captured
end

local ports = DissectorTable.get("udp.port")
ports:add(PORTS, jvp)
function jvp.prefs_changed()
  if PORTS ~= jvp.prefs.ports then
    ports:remove(PORTS, jvp)
    PORTS = jvp.prefs.ports
    ports:add(PORTS, jvp)
  end
end
"""


class Row(NamedTuple):
    """A field of the dissector. `at` and `size` are bytes; negative: from the end, and up to so many before it."""

    field: str
    at: int
    size: int

    @property
    def lua(self) -> str:
        return f"{{ {self.field}, {self.at}, {self.size} }}"


def names(prefix: str, layer: type[Packet]) -> dict[str, str]:
    """Wireshark's name of each of a layer's fields, by Scapy's."""
    return {field.name: f"{prefix}.{field.name}" for field in layer.fields_desc}


def prefix_of(kind: PacketType) -> str:
    return f"jvp.{kind.name.lower()}"


def rows(prefix: str, layer: type[Packet]) -> Iterator[Row]:
    """The fields of a layer. Raises TypeError for a kind of field that the dissector does not know."""
    at = bits = 0
    for field in layer.fields_desc:
        abbreviation = names(prefix, layer)[field.name]
        match field:
            case ByteEnumField():
                base = "base.HEX" if field.name == "type" else "base.DEC"
                made, size = _number("uint8", abbreviation, field, base, _table(field.i2s or {})), 1
            case ByteField():
                made, size = _number("uint8", abbreviation, field, "base.DEC"), 1
            case LongField():
                made, size = _number("uint64", abbreviation, field, "base.DEC"), 8
            case XStrFixedLenField():
                made, size = _bytes(abbreviation, field), field.length_from(Packet())
            case XStrField():
                yield Row(_bytes(abbreviation, field), at, -field.remain)
                # What follows is found from the end.
                at = -field.remain
                continue
            case BitField():
                mask = (1 << field.size) - 1 << 8 - bits - field.size
                yield Row(_number("uint8", abbreviation, field, "base.DEC", "nil", f"{mask:#x}"), at, 1)
                bits = (bits + field.size) % 8
                at += bits == 0
                continue
            case _:
                raise TypeError(
                    f"{layer.__name__}.{field.name}: {type(field).__name__} has no counterpart here yet"
                )
        yield Row(made, at, size)
        at += size


def _number(kind: str, abbreviation: str, field: Any, *more: str) -> str:
    return f"ProtoField.{kind}({', '.join([_quoted(abbreviation), _quoted(_title(field)), *more])})"


def _bytes(abbreviation: str, field: Any) -> str:
    return f"ProtoField.bytes({_quoted(abbreviation)}, {_quoted(_title(field))})"


def _title(field: Any) -> str:
    title: str = field.name.replace("_", " ")
    return title


def _quoted(text: str) -> str:
    return f'"{text}"'


def _table(values: dict[int, str]) -> str:
    return "{ " + ", ".join(f"[{number:#x}] = {_quoted(name)}" for number, name in values.items()) + " }"


def _listed(found: Iterator[Row], indent: str) -> str:
    return "".join(f"{indent}{row.lua},\n" for row in found)


def lua() -> str:
    """The whole dissector."""
    parts = [
        _HEAD,
        'local jvp = Proto("jvp", "Jumping VPN, JVP/1")\n',
        f"local HEADER_SIZE, VERSION, PORTS = {HEADER_SIZE}, {VERSION}, {_quoted(str(PORT))}\n\n",
        "-- Each field with its offset and its size; negative: from the end, and up to so many bytes before it.\n",
        f"local HEADER = {{\n{_listed(rows('jvp', JVP), '  ')}}}\n\n",
        "-- By type. Offsets count from behind the header, sizes of datagrams from its start.\nlocal LAYERS = {\n",
    ]
    for kind, (layer, _inside) in LAYERS.items():
        sizes = SIZES[kind]
        about = f"name = {_quoted(kind.name)}, shortest = {sizes[0]}, longest = {sizes[-1]}"
        fields = _listed(rows(prefix_of(kind), layer), "    ")
        parts.append(f"  [{int(kind):#x}] = {{ {about}, fields = {{\n{fields}  }} }},\n")
    return "".join([*parts, "}\n\n", _BODY])


if __name__ == "__main__":
    sys.stdout.write(lua())
