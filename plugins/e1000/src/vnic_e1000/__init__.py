"""Intel's 8254x (e1000) NIC as a frontend of vnic."""
