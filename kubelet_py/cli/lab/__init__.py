"""A cluster of several machines on one: each machine of the lab is a set of namespaces.

    host ── kpylab0 ══ switch ─┬─ control   API server, scheduler, controllers
                               ├─ node1     kubelet, proxy, pods
                               └─ node2 …

A machine has a network, mount, PID, UTS, IPC and cgroup namespace, a disk of its own below the lab's folder,
and a process 1 (init.py). Whatever is in it ends with that process: to SIGKILL it is to pull the plug. The
switch is a namespace, too, with a bridge in it, so the host has one link more and nothing else. Nodes join as
real machines do, by `kubelet-py join`; only their processes are forked from one that has imported everything
already (warm.py): that is most of what a lab of fifty nodes would cost otherwise.
"""
