"""Traffic of the lab, made and read with Scapy: the layers of JVP/1 and the key log that opens what is sealed."""
