"""Ways to weaken the product, and the tests that must notice: read by mutate.py.

Each is a few replacements of text that occurs exactly once in its file. When the source moves on and a text
is not found any more, the run fails and says so: the weakening must be written anew, not forgotten.
"""

from __future__ import annotations

from tests.security.weakening import Weakening, weak
from tests.security.weakenings_of_pods import WEAKENINGS as OF_PODS

OPERATIONS, PROCESS, MOUNTS = "runtime/operations.py", "runtime/process.py", "runtime/mounts.py"
DEVICES, NAMESPACES, SECURITY = "runtime/devices.py", "runtime/namespaces.py", "kubelet_py/pods/security.py"
PROFILE, PROCFS, SPEC = "runtime/seccomp/profile.py", "runtime/procfs.py", "kubelet_py/pods/container_spec.py"
CAPABILITIES, LAUNCH_MOUNTING = "runtime/capabilities.py", "runtime/mounting.py"

PIDS = """    if rules.pids > 0:
        answer["pids"] = {"limit": rules.pids}
    if rules.huge_pages:
        answer["hugepageLimits"] = _huge_limits(limits, rules)
    protected ="""

WEAKENINGS = (
    weak(
        "one capability more", CAPABILITIES,
        '"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",\n)  # fmt: skip',
        '"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_NET_RAW",\n)  # fmt: skip',
        "test_S01_the_default_capabilities_are_nine",
        "test_S01_an_exec_gets_no_more_than_its_container",
    ),
    weak(
        "inheritable as permitted", SECURITY,
        '"inheritable": [], "ambient": []}',
        '"inheritable": held, "ambient": []}',
        "test_S01_the_default_capabilities_are_nine",
    ),
    Weakening(
        "every user holds capabilities",
        (
            (SECURITY, "held = chosen if uid == 0 else []", "held = chosen"),
            (SECURITY, '"inheritable": [], "ambient": []}', '"inheritable": held, "ambient": held}'),
        ),
        ("test_S01_another_user_than_root_starts_with_none",),
    ),
    weak(
        "bounding set kept whole", PROCESS,
        "        context.child(*bounding_steps(given, bounding))\n",
        "",
        "test_S01_the_default_capabilities_are_nine",
        "test_S02_dropping_all_leaves_nothing",
    ),
    weak(
        "drop ALL ignored", CAPABILITIES,
        '    if "ALL" in dropped:\n        chosen = set()\n',
        "",
        "test_S02_dropping_all_leaves_nothing",
        "test_S02_capabilities_are_added_and_dropped_by_name",
    ),
    weak(
        "add wins over drop", CAPABILITIES,
        '    chosen -= {normalise(name) for name in dropped if name != "ALL"}\n',
        "",
        "test_S02_capabilities_are_added_and_dropped_by_name",
        "test_S02_unknown_capabilities_are_refused",
    ),
    weak(
        "no no_new_privs", PROCESS,
        '        context.child(Step("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))',
        "        return",
        "test_S03_a_setuid_program_gains_nothing_without_escalation",
    ),
    weak(
        "allowPrivilegeEscalation ignored", SECURITY,
        'return context.get("allowPrivilegeEscalation") is False',
        "return False",
        "test_S03_a_setuid_program_gains_nothing_without_escalation",
    ),
    weak(
        "seccomp not loaded", OPERATIONS,
        "if spec.linux.seccomp is None:",
        "if True:",
        "test_S04_the_filter_is_loaded_with_and_without_no_new_privs",
        "test_S04_other_entries_into_the_kernel_are_killed",
        "test_S01_an_exec_gets_no_more_than_its_container",
    ),
    weak(
        "seccomp off by default", SECURITY,
        '"RuntimeDefault" if default else "Unconfined"',
        '"Unconfined"',
        "test_S04_the_filter_is_loaded_with_and_without_no_new_privs",
    ),
    weak(
        "seccomp allows by default", PROFILE,
        '"defaultAction": "SCMP_ACT_ERRNO"',
        '"defaultAction": "SCMP_ACT_ALLOW"',
        "test_S04_a_dangerous_system_call_is_refused",
    ),
    weak(
        "clone not looked into", PROFILE,
        'flags = {"index": 0, "value": NAMESPACE_FLAGS,',
        'flags = {"index": 0, "value": 0,',
        "test_S04_a_dangerous_system_call_is_refused",
    ),
    weak(
        "clone3 allowed", PROFILE,
        '        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})\n',
        '        rules.append(_allow(["clone3"]))\n',
        "test_S04_clone3_does_not_exist",
    ),
    weak(
        "no masks", OPERATIONS,
        "            *(MaskPath(path) for path in spec.linux.masked_paths),\n",
        "",
        "test_S05_a_masked_path_shows_nothing",
        "test_E07_masks_do_not_come_from_the_images_null",
    ),
    weak(
        "throttling shown", SECURITY,
        "return [*MASKED, *thermal]",
        "return [*MASKED]",
        "test_S05_thermal_throttling_of_every_processor_is_masked",
    ),
    weak(
        "no read-only paths", OPERATIONS,
        "            *(ProtectPath(path) for path in spec.linux.readonly_paths),\n",
        "",
        "test_S06_the_kernels_settings_cannot_be_opened_for_writing",
        "test_E16_settings_that_run_programs_on_the_host_are_read_only",
    ),
    weak(
        "read-only paths writable", PROCFS,
        'attributes = ATTR_RDONLY.to_bytes(8, "little")',
        "attributes = bytes(8)",
        "test_S06_the_kernels_settings_cannot_be_opened_for_writing",
        "test_E16_settings_that_run_programs_on_the_host_are_read_only",
    ),
    weak(
        "/sys writable", SPEC,
        '"rw" if privileged else "ro"]',
        '"rw"]',
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "cgroups writable", SPEC,
        '"nosuid", "noexec", "nodev", "relatime", "ro")',
        '"nosuid", "noexec", "nodev", "relatime")',
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "everybody is privileged", SPEC,
        'privileged = bool(context.get("privileged"))',
        "privileged = True",
        "test_S08_a_device_that_was_made_cannot_be_opened",
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "ALL lifts masks", SECURITY,
        'if context.get("privileged") or context.get("procMount") == "Unmasked":',
        'if context.get("privileged") or context.get("capabilities"):',
        "test_S07_privileged_lifts_it_all_and_nothing_else_does",
    ),
    weak(
        "no device list", SPEC,
        '"devices": list(ALL_DEVICES if privileged else DEVICES)',
        '"devices": list(ALL_DEVICES)',
        "test_S08_a_device_that_was_made_cannot_be_opened",
    ),
    weak(
        "an extra device node", DEVICES,
        '("tty", 5, 0)\n',
        '("tty", 5, 0), ("kmsg", 1, 11)\n',
        "test_S08_only_the_default_devices_are_there",
    ),
    weak(
        "oom score not set", SPEC,
        '        "oomScoreAdj": facts.oom_score_adj,\n',
        "",
        "test_S09_the_oom_score_follows_the_quality_of_service",
    ),
    weak(
        "rlimits not set", PROCESS,
        'context.child(Step("prlimit64", (0, self.limit.resource, pair, 0), tolerate=True))',
        "return",
        "test_S09_rlimits_bind_the_container_alone",
    ),
    weak(
        "rlimits of the starter", PROCESS,
        'context.child(Step("prlimit64", (0, self.limit.resource, pair, 0), tolerate=True))',
        '__import__("resource").setrlimit(self.limit.resource, (self.limit.soft, self.limit.hard))',
        "test_S09_rlimits_bind_the_container_alone",
    ),
    weak(
        "no pids limit", "kubelet_py/pods/resources.py",
        PIDS,
        PIDS.replace("rules.pids > 0", "False"),
        "test_S09_a_fork_bomb_ends_at_its_limit",
    ),
    weak(
        "root writable", OPERATIONS,
        "*([ProtectRoot()] if spec.root and spec.root.readonly else []),",
        "",
        "test_S10_a_read_only_root_stays_read_only",
    ),
    weak(
        "runAsNonRoot ignored", SECURITY,
        '    if not context.get("runAsNonRoot"):\n        return\n',
        "    return\n",
        "test_S11_run_as_non_root_refuses_root",
    ),
    weak(
        "runAsNonRoot believes names", SECURITY,
        "if name and not name.isdigit():",
        "if False:",
        "test_S11_run_as_non_root_refuses_root",
    ),
    weak(
        "uid forgotten at restart", "kubelet_py/pods/containers.py",
        'user = self._user(image, security.wanted_user(context, image.config.get("User") or ""))',
        "user = users.User(0 if attempt else 1234, 5)",
        "test_S11_the_uid_holds_after_a_restart",
    ),
    weak(
        "supplemental groups left out", SECURITY,
        '    groups += context.get("supplementalGroups") or []\n',
        "",
        "test_S12_groups_are_those_of_the_pod",
    ),
    weak(
        "image groups always", SECURITY,
        'if context.get("supplementalGroupsPolicy") != "Strict":',
        "if True:",
        "test_S12_groups_are_those_of_the_pod",
    ),
    weak(
        "any sysctl from pods", SECURITY,
        "if name not in SAFE_SYSCTLS and",
        "if False and",
        "test_S13_a_pod_may_not_set_just_any_sysctl",
    ),
    weak(
        "sysctls of the host's network", SECURITY,
        'if name.startswith("net.") and',
        "if False and",
        "test_S13_safe_sysctls_are_for_namespaces_of_ones_own",
    ),
    weak(
        "any sysctl in the runtime", OPERATIONS,
        "if namespace_of_sysctl(name) not in own:",
        "if False:",
        "test_S13_the_runtime_itself_refuses_sysctls_of_the_machine",
        "test_S13_sysctls_are_set_in_the_containers_namespaces",
    ),
    weak(
        "dots in sysctls", NAMESPACES,
        'if not {"", ".", ".."}.isdisjoint(parts):',
        "if False:",
        "test_S13_the_runtime_itself_refuses_sysctls_of_the_machine",
    ),
    weak(
        "pods in the host's network", "runtime/oci_config.py",
        '"network": not config.host_network,',
        '"network": False,',
        "test_S14_namespaces_are_the_hosts_only_where_asked",
    ),
    weak(
        "pods in the host's IPC", "runtime/oci_config.py",
        '"ipc": not config.host_ipc,',
        '"ipc": False,',
        "test_S14_namespaces_are_the_hosts_only_where_asked",
    ),
    weak(
        "containers share processes", "runtime/oci_config.py",
        "if not sandbox.host_pid and not sandbox.share_process_namespace:",
        "if False:",
        "test_S14_namespaces_are_the_hosts_only_where_asked",
    ),
    weak(
        "magic links executed", PROCESS,
        'how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, NO_MAGICLINKS)',
        'how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, 0)',
        "test_E01_an_image_cannot_run_the_starters_own_program",
    ),
    weak(
        "interpreter writable", "runtime/forkserver_link.py",
        "    kernel.mount_setattr(tree, set=ATTR_RDONLY)\n",
        "",
        "test_E01_the_shims_program_cannot_be_written",
    ),
    weak(
        "a descriptor is kept open", PROCESS,
        'context.child(Step("close_range", (self.first, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)))',
        "return",
        "test_E02_nothing_is_inherited",
    ),
    weak(
        "working directory by the host's /proc", PROCESS,
        "        enter = make_inside if self.make else open_inside\n        fd = enter(kernel, context.root, "
        "self.path)\n        try:\n            kernel.fchdir(fd)\n",
        '        fd = kernel.openat2(context.host_proc, self.path.removeprefix("/proc/"), os.O_PATH)\n'
        "        try:\n            kernel.fchdir(fd)\n            return\n",
        "test_E02_an_exec_cannot_work_in_a_folder_of_the_host",
    ),
    Weakening(
        "dumpable while entering",
        (
            (NAMESPACES, "        kernel.dumpable(False)\n", ""),
            (PROCESS, '            Step("prctl", (PR_SET_DUMPABLE, 0, 0, 0, 0)),\n', ""),
        ),
        ("test_E03_nobody_can_look_into_a_process_that_enters",),
    ),
    weak(
        "/proc and /sys through symlinks", LAUNCH_MOUNTING,
        "resolve = INSIDE if symlinks else INSIDE | NO_SYMLINKS",
        "resolve = INSIDE",
        "test_E04_an_image_with_proc_or_sys_as_symlink_is_refused",
    ),
    weak(
        "volumes over /proc", MOUNTS,
        "if place[1] not in procfs.ALLOWED:",
        "if False:",
        "test_E05_a_volume_over_proc_is_refused",
    ),
    weak(
        "RESOLVE_IN_ROOT off", LAUNCH_MOUNTING,
        "INSIDE = IN_ROOT | NO_MAGICLINKS",
        "INSIDE = 0",
        "test_E06_E10_a_swapped_symlink_never_leads_outside",
    ),
    weak(
        "mounts by path", MOUNTS,
        "            return make_inside(kernel, context.root, self.destination, folder=f"
        "older, symlinks=symlinks)",
        '            path = os.path.realpath(f"/proc/self/fd/{context.root}{self.destination}")\n'
        "            os.makedirs(path, exist_ok=True)\n            return kernel.open(path, os.O_PATH)",
        "test_E06_symlinks_of_the_image_cannot_lead_a_mount_outside",
    ),
    weak(
        "mkdir through symlinks", LAUNCH_MOUNTING,
        "            kernel.mkdir(name, 0o755, dir_fd=parent)",
        '            os.mkdir("/proc/self/fd/%d/%s" % (root, "/".join(names)), 0o755)',
        "test_E06_E10_a_swapped_symlink_never_leads_outside",
    ),
    weak(
        "another null accepted", DEVICES,
        "if status.mode & 0o170000 != kind or status.rdev != number:",
        "if False:",
        "test_E07_masks_do_not_come_from_the_images_null",
    ),
    weak(
        "console through a symlink", DEVICES,
        "if kernel.fstat(target).mode & 0o170000 == 0o120000:",
        "if False:",
        "test_E08_the_console_is_no_link",
    ),
    weak(
        "sysctls through mounts", NAMESPACES,
        "resolve = 0x01 | 0x02 | 0x04 | 0x08",
        "resolve = 0",
        "test_E09_a_sysctl_is_written_to_a_real_procfs",
    ),
    weak(
        "/dev through symlinks", DEVICES,
        "folders[folder] = make_inside(kernel, context.root, folder)",
        'folders[folder] = kernel.open(os.path.realpath(f"/proc/self/fd/{context.root}{folder}"), os.O_PATH)',
        "test_E11_links_and_devices_are_not_made_outside",
    ),
    weak(
        "host's cgroups shown", SPEC,
        'mounts.append(_mount("/sys", "sysfs", "sysfs", *sys_options))',
        'mounts.append(_mount("/sys", "bind", "/sys", "rbind", *sys_options))',
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "no new cgroup namespace", NAMESPACES,
        'context.child(Step("unshare", (FLAGS["cgroup"],)))',
        "return",
        "test_E12_no_writable_v1_cgroup_or_release_agent",
    ),
    weak(
        "no session of its own", PROCESS,
        '        context.child(Step("setsid"))\n',
        "",
        "test_E14_an_exec_is_a_session_of_its_own",
    ),
    weak(
        "no controlling terminal", PROCESS,
        '            context.child(Step("ioctl", (0, TIOCSCTTY, 0)))',
        "            pass",
        "test_E14_the_terminal_is_a_new_one_and_controlling",
    ),
    weak(
        "old root kept", MOUNTS,
        '            kernel.umount(".", MNT_DETACH)\n',
        "",
        "test_E15_nothing_of_the_old_root_is_left",
    ),
    weak(
        "propagation not cut", MOUNTS,
        'flags = PROPAGATION[name] | (MS_REC if self.propagation.startswith("r") and name != "" else 0)\n'
        '        kernel.mount("", "/", "", flags, "")',
        "return",
        "test_E15_a_shared_host_mount_is_cut_off",
    ),
    weak(
        "pause is root", OPERATIONS,
        "SetCredentials(PAUSE_USER, PAUSE_USER, (), bits(None)),",
        "",
        "test_E17_pause_reaps_and_cannot_be_killed_from_a_shared_pid_namespace",
    ),
    weak(
        "no network of its own", OPERATIONS,
        '"network", "time", "pid")',
        '"time", "pid")',
        "test_E18_net_admin_ends_at_the_pods_network",
    ),
    weak(
        "start time not compared", NAMESPACES,
        "if self.start_time is not None and",
        "if False and",
        "test_E19_a_recycled_pid_is_not_entered",
    ),
    weak(
        "agent sockets open to all", "runtime/shim_link.py",
        "os.chmod(path, 0o600)",
        "os.chmod(path, 0o666)",
        "test_E13_no_socket_can_be_reached_from_a_container",
    ),
    weak(
        "log written through links", "runtime/logs.py",
        " | os.O_NOFOLLOW",
        "",
        "test_E20_a_link_in_place_of_the_log_is_not_written_through",
    ),
    weak(
        "log read through links", "kubelet_py/server/logs.py",
        " | os.O_NOFOLLOW)",
        ")",
        "test_E20_a_link_in_place_of_the_log_is_not_read",
    ),
    weak(
        "last words through links", "kubelet_py/pods/last_words.py",
        "flags | os.O_NOFOLLOW | os.O_NONBLOCK",
        "flags | os.O_NONBLOCK",
        "test_E20_last_words_are_read_from_a_plain_file_only",
    ),
    weak(
        "the image's own files", "kubelet_py/pods/files.py",
        'if path not in taken and "/etc" not in taken',
        "if False",
        "test_E21_files_of_the_pod_are_the_agents_own",
    ),
    *OF_PODS,
)
