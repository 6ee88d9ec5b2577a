"""`kubelet-py doctor`: what a node needs of this host, what was found, and the command that mends it.

command.py is the command. The kernel, the tools and the node's settings are read into plain values
(observe_*.py); what to think of them is decided purely, one module per noun (kernel.py, cgroups.py,
netfilter.py, network.py, machine.py), so that every verdict has a row in a table test.
"""
