"""The virtio-net NIC as a frontend of vnic."""
