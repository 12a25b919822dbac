-- Jumping VPN, JVP/1: a dissector for Wireshark and tshark. What it shows and how it is installed: docs/traffic.md.
-- Made by `python -m vagrant.traffic.wireshark` from the layers in vagrant/traffic/jvp.py: change those.
local jvp = Proto("jvp", "Jumping VPN, JVP/1")
local HEADER_SIZE, VERSION, PORTS = 20, 1, "51820"

-- Each field with its offset and its size; negative: from the end, and up to so many bytes before it.
local HEADER = {
  { ProtoField.uint8("jvp.type", "type", base.HEX, { [0x1] = "HANDSHAKE_INIT", [0x2] = "HANDSHAKE_RESPONSE", [0x3] = "COOKIE", [0x10] = "REATTACH_REQUEST", [0x11] = "REATTACH_ACK", [0x12] = "REATTACH_FAIL", [0x20] = "DATA", [0x21] = "CONTROL", [0x22] = "PATH", [0x23] = "FRAGMENT", [0x24] = "RESENT", [0x30] = "RESET" }), 0, 1 },
  { ProtoField.uint8("jvp.version", "version", base.DEC, nil, 0xf0), 1, 1 },
  { ProtoField.uint8("jvp.phase", "phase", base.DEC, nil, 0xf), 1, 1 },
  { ProtoField.uint8("jvp.suite", "suite", base.DEC, { [0x0] = "none", [0x1] = "AESGCM_SHA256", [0x2] = "ChaChaPoly_BLAKE2s" }), 2, 1 },
  { ProtoField.uint8("jvp.zero", "zero", base.DEC), 3, 1 },
  { ProtoField.bytes("jvp.steering_id", "steering id"), 4, 8 },
  { ProtoField.uint64("jvp.counter", "counter", base.DEC), 12, 8 },
}

-- By type. Offsets count from behind the header, sizes of datagrams from its start.
local LAYERS = {
  [0x1] = { name = "HANDSHAKE_INIT", shortest = 161, longest = 1232, fields = {
    { ProtoField.bytes("jvp.handshake_init.ephemeral", "ephemeral"), 0, 32 },
    { ProtoField.bytes("jvp.handshake_init.sealed_static", "sealed static"), 32, 48 },
    { ProtoField.bytes("jvp.handshake_init.sealed_payload", "sealed payload"), 80, -32 },
    { ProtoField.bytes("jvp.handshake_init.mac1", "mac1"), -32, 16 },
    { ProtoField.bytes("jvp.handshake_init.mac2", "mac2"), -16, 16 },
  } },
  [0x2] = { name = "HANDSHAKE_RESPONSE", shortest = 88, longest = 88, fields = {
    { ProtoField.bytes("jvp.handshake_response.ephemeral", "ephemeral"), 0, 32 },
    { ProtoField.bytes("jvp.handshake_response.sealed_payload", "sealed payload"), 32, 36 },
  } },
  [0x3] = { name = "COOKIE", shortest = 68, longest = 68, fields = {
    { ProtoField.bytes("jvp.cookie.salt", "salt"), 0, 16 },
    { ProtoField.bytes("jvp.cookie.sealed_cookie", "sealed cookie"), 16, 32 },
  } },
  [0x10] = { name = "REATTACH_REQUEST", shortest = 256, longest = 256, fields = {
    { ProtoField.bytes("jvp.reattach_request.ticket", "ticket"), 0, 44 },
    { ProtoField.bytes("jvp.reattach_request.sealed", "sealed"), 44, -16 },
    { ProtoField.bytes("jvp.reattach_request.tag", "tag"), -16, 16 },
  } },
  [0x11] = { name = "REATTACH_ACK", shortest = 112, longest = 256, fields = {
    { ProtoField.bytes("jvp.reattach_ack.salt", "salt"), 0, 16 },
    { ProtoField.bytes("jvp.reattach_ack.sealed", "sealed"), 16, -16 },
    { ProtoField.bytes("jvp.reattach_ack.tag", "tag"), -16, 16 },
  } },
  [0x12] = { name = "REATTACH_FAIL", shortest = 74, longest = 256, fields = {
    { ProtoField.bytes("jvp.reattach_fail.salt", "salt"), 0, 16 },
    { ProtoField.bytes("jvp.reattach_fail.sealed", "sealed"), 16, -16 },
    { ProtoField.bytes("jvp.reattach_fail.tag", "tag"), -16, 16 },
  } },
  [0x20] = { name = "DATA", shortest = 64, longest = 65507, fields = {
    { ProtoField.bytes("jvp.data.sealed", "sealed"), 0, -16 },
    { ProtoField.bytes("jvp.data.tag", "tag"), -16, 16 },
  } },
  [0x21] = { name = "CONTROL", shortest = 46, longest = 1232, fields = {
    { ProtoField.bytes("jvp.control.sealed", "sealed"), 0, -16 },
    { ProtoField.bytes("jvp.control.tag", "tag"), -16, 16 },
  } },
  [0x22] = { name = "PATH", shortest = 84, longest = 65507, fields = {
    { ProtoField.bytes("jvp.path.sealed", "sealed"), 0, -16 },
    { ProtoField.bytes("jvp.path.tag", "tag"), -16, 16 },
  } },
  [0x23] = { name = "FRAGMENT", shortest = 36, longest = 65507, fields = {
    { ProtoField.bytes("jvp.fragment.sealed", "sealed"), 0, -16 },
    { ProtoField.bytes("jvp.fragment.tag", "tag"), -16, 16 },
  } },
  [0x24] = { name = "RESENT", shortest = 68, longest = 65507, fields = {
    { ProtoField.bytes("jvp.resent.sealed", "sealed"), 0, -16 },
    { ProtoField.bytes("jvp.resent.tag", "tag"), -16, 16 },
  } },
  [0x30] = { name = "RESET", shortest = 36, longest = 36, fields = {
    { ProtoField.bytes("jvp.reset.token", "token"), 0, 16 },
  } },
}

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
