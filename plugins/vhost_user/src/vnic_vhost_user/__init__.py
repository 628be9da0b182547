"""Serves vnic's NICs to a VMM over vhost-user."""
