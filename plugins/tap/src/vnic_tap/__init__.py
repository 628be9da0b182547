"""Linux tap devices as a backend of vnic."""
