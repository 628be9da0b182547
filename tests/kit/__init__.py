"""What tests and benchmarks share: the world outside, and what plays a part of vnic's own.

Of the world outside: real programs are fetched (``debian``), a small Linux guest is built from
them (``image``) and booted in QEMU (``guest``), networks touch nothing else (``netns``), and DPDK's
testpmd is driven (``testpmd``).  What a machine cannot give is one error,
:class:`kit.missing.Missing`, with its reason and its remedy.

Of vnic's own: backends, wires, devices and VMMs in plain Python, slow and exact, or wrong in a way
that is known.
"""
