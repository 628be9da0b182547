"""What the tests and benchmarks need from the world outside: guests, namespaces, DPDK.

The kit knows nothing of vnic.  It fetches real programs (``debian``), builds a small Linux guest
from them (``image``), boots it in QEMU (``guest``), makes networks that touch nothing else
(``netns``) and drives DPDK's testpmd (``testpmd``). What a machine cannot give is one error,
:class:`kit.missing.Missing`, with its reason and its remedy.
"""
