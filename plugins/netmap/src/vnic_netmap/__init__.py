"""netmap and VALE as backends of vnic."""
