"""Weakenings of what every container gets: lines S01 to S14 (see weakenings.py)."""

from __future__ import annotations

from tests.security.weakening import Weakening, weak

CAPABILITIES = "runtime/capabilities.py"
DEVICES = "runtime/devices.py"
FILTER = "runtime/seccomp/filter.py"
LOADING = "runtime/seccomp/loading.py"
NAMESPACES = "runtime/namespaces.py"
OPERATIONS = "runtime/operations.py"
PROCESS = "runtime/process.py"
PROCFS = "runtime/procfs.py"
PROFILE = "runtime/seccomp/profile.py"
RECORDER = "runtime/recorder.py"
SECURITY = "kubelet_py/pods/security.py"
SPEC = "kubelet_py/pods/container_spec.py"

PIDS = """    if rules.pids > 0:
        answer["pids"] = {"limit": rules.pids}
    if rules.huge_pages:
        answer["hugepageLimits"] = _huge_limits(limits, rules)
    protected ="""

WEAKENINGS = (
    weak(
        "one capability more",
        CAPABILITIES,
        '"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",\n)  # fmt: skip',
        '"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_NET_RAW",\n)  # fmt: skip',
        "test_S01_the_default_capabilities_are_nine",
        "test_S01_an_exec_gets_no_more_than_its_container",
    ),
    weak(
        "inheritable as permitted",
        SECURITY,
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
        "bounding set kept whole",
        PROCESS,
        "        context.child(*bounding_steps(given, bounding))\n",
        "",
        "test_S01_the_default_capabilities_are_nine",
        "test_S02_dropping_all_leaves_nothing",
    ),
    weak(
        "drop ALL ignored",
        CAPABILITIES,
        '    if "ALL" in dropped:\n        chosen = set()\n',
        "",
        "test_S02_dropping_all_leaves_nothing",
        "test_S02_capabilities_are_added_and_dropped_by_name",
    ),
    weak(
        "add wins over drop",
        CAPABILITIES,
        '    chosen -= {normalise(name) for name in dropped if name != "ALL"}\n',
        "",
        "test_S02_capabilities_are_added_and_dropped_by_name",
        "test_S02_unknown_capabilities_are_refused",
    ),
    weak(
        "no no_new_privs",
        PROCESS,
        '        context.child(Step("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))',
        "        return",
        "test_S03_a_setuid_program_gains_nothing_without_escalation",
    ),
    weak(
        "allowPrivilegeEscalation ignored",
        SECURITY,
        'return context.get("allowPrivilegeEscalation") is False',
        "return False",
        "test_S03_a_setuid_program_gains_nothing_without_escalation",
    ),
    weak(
        "seccomp not loaded",
        LOADING,
        "if spec.linux.seccomp is None:",
        "if True:",
        "test_S04_the_filter_is_loaded_with_and_without_no_new_privs",
        "test_S04_other_entries_into_the_kernel_are_killed",
        "test_S01_an_exec_gets_no_more_than_its_container",
        "test_E12_no_namespace_is_made_in_which_cgroups_could_be_mounted",
    ),
    weak(
        "filter before the credentials",
        LOADING,
        "        return [], [*after, load], listening\n",
        "        return [load], after, listening\n",
        "test_S04_with_no_new_privs_the_filter_comes_after_the_credentials",
    ),
    weak(
        "seccomp off by default",
        SECURITY,
        '"RuntimeDefault" if default else "Unconfined"',
        '"Unconfined"',
        "test_S04_the_filter_is_loaded_with_and_without_no_new_privs",
    ),
    weak(
        "seccomp allows by default",
        PROFILE,
        '"defaultAction": "SCMP_ACT_ERRNO"',
        '"defaultAction": "SCMP_ACT_ALLOW"',
        "test_S04_a_dangerous_system_call_is_refused",
    ),
    weak(
        "clone not looked into",
        PROFILE,
        'flags = {"index": 0, "value": NAMESPACE_FLAGS,',
        'flags = {"index": 0, "value": 0,',
        "test_S04_a_dangerous_system_call_is_refused",
    ),
    weak(
        "clone3 allowed",
        PROFILE,
        '        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})\n',
        '        rules.append(_allow(["clone3"]))\n',
        "test_S04_clone3_does_not_exist",
    ),
    weak(
        "32-bit calls not looked into",
        FILTER,
        "Instruction(JUMP, len(tree) + 1) if other else Instruction(RETURN, KILL_PROCESS)",
        "Instruction(JUMP, len(tree) + 1) if other else Instruction(RETURN, ALLOW)",
        "test_S04_a_32_bit_program_is_killed",
    ),
    weak(
        "x32 not looked into",
        FILTER,
        'if machine == "x86_64" and "SCMP_ARCH_X32" not in wanted:',
        "if False:",
        "test_S04_other_entries_into_the_kernel_are_killed",
    ),
    weak(
        "no masks",
        OPERATIONS,
        "            *(MaskPath(path) for path in spec.linux.masked_paths),\n",
        "",
        "test_S05_a_masked_path_shows_nothing",
        "test_E07_masks_do_not_come_from_the_images_null",
    ),
    weak(
        "throttling shown",
        SECURITY,
        "return [*MASKED, *thermal]",
        "return [*MASKED]",
        "test_S05_thermal_throttling_of_every_processor_is_masked",
    ),
    weak(
        "no read-only paths",
        OPERATIONS,
        "            *(_protect(path) for path in spec.linux.readonly_paths),\n",
        "",
        "test_S06_the_kernels_settings_cannot_be_opened_for_writing",
        "test_E16_settings_that_run_programs_on_the_host_are_read_only",
    ),
    weak(
        "read-only paths writable",
        PROCFS,
        'attributes = ATTR_RDONLY.to_bytes(8, "little")',
        "attributes = bytes(8)",
        "test_S06_the_kernels_settings_cannot_be_opened_for_writing",
        "test_E16_settings_that_run_programs_on_the_host_are_read_only",
    ),
    weak(
        "/sys writable",
        SPEC,
        '"rw" if privileged else "ro"]',
        '"rw"]',
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "cgroups writable",
        SPEC,
        '"nosuid", "noexec", "nodev", "relatime", "ro")',
        '"nosuid", "noexec", "nodev", "relatime")',
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "everybody is privileged",
        SPEC,
        'privileged = bool(context.get("privileged"))',
        "privileged = True",
        "test_S08_a_device_that_was_made_cannot_be_opened",
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
    weak(
        "ALL lifts masks",
        SECURITY,
        'if context.get("privileged") or context.get("procMount") == "Unmasked":',
        'if context.get("privileged") or context.get("capabilities"):',
        "test_S07_privileged_lifts_it_all_and_nothing_else_does",
    ),
    weak(
        "no device list",
        SPEC,
        '"devices": list(ALL_DEVICES if privileged else DEVICES)',
        '"devices": list(ALL_DEVICES)',
        "test_S08_a_device_that_was_made_cannot_be_opened",
    ),
    weak(
        "an extra device node",
        DEVICES,
        '("tty", 5, 0)\n',
        '("tty", 5, 0), ("kmsg", 1, 11)\n',
        "test_S08_only_the_default_devices_are_there",
    ),
    weak(
        "oom score not set",
        SPEC,
        '        "oomScoreAdj": facts.oom_score_adj,\n',
        "",
        "test_S09_the_oom_score_follows_the_quality_of_service",
    ),
    weak(
        "rlimits not set",
        PROCESS,
        'context.child(Step("prlimit64", (0, self.limit.resource, pair, 0), tolerate=True))',
        "return",
        "test_S09_rlimits_bind_the_container_alone",
    ),
    weak(
        "rlimits of the starter",
        PROCESS,
        'context.child(Step("prlimit64", (0, self.limit.resource, pair, 0), tolerate=True))',
        '__import__("resource").setrlimit(self.limit.resource, (self.limit.soft, self.limit.hard))',
        "test_S09_rlimits_bind_the_container_alone",
    ),
    weak(
        "no pids limit",
        "kubelet_py/pods/resources.py",
        PIDS,
        PIDS.replace("rules.pids > 0", "False"),
        "test_S09_a_fork_bomb_ends_at_its_limit",
    ),
    weak(
        "root writable",
        OPERATIONS,
        "*([ProtectRoot()] if spec.root and spec.root.readonly else []),",
        "",
        "test_S10_a_read_only_root_stays_read_only",
    ),
    weak(
        "runAsNonRoot ignored",
        SECURITY,
        '    if not context.get("runAsNonRoot"):\n        return\n',
        "    return\n",
        "test_S11_run_as_non_root_refuses_root",
    ),
    weak(
        "runAsNonRoot believes names",
        SECURITY,
        "if name and not name.isdigit():",
        "if False:",
        "test_S11_run_as_non_root_refuses_root",
    ),
    weak(
        "ids of any size",
        "runtime/users.py",
        "    if number > LARGEST_ID:\n",
        "    if False:\n",
        "test_S11_ids_beyond_32_bits_are_refused",
    ),
    weak(
        "uid forgotten at restart",
        "kubelet_py/pods/containers.py",
        'user = self._user(image, security.wanted_user(context, image.config.get("User") or ""))',
        "user = users.User(0 if attempt else 1234, 5)",
        "test_S11_the_uid_holds_after_a_restart",
    ),
    weak(
        "supplemental groups left out",
        SECURITY,
        '    groups += context.get("supplementalGroups") or []\n',
        "",
        "test_S12_groups_are_those_of_the_pod",
    ),
    weak(
        "image groups always",
        SECURITY,
        'if context.get("supplementalGroupsPolicy") != "Strict":',
        "if True:",
        "test_S12_groups_are_those_of_the_pod",
    ),
    weak(
        "any sysctl from pods",
        SECURITY,
        "if name not in SAFE_SYSCTLS and",
        "if False and",
        "test_S13_a_pod_may_not_set_just_any_sysctl",
    ),
    weak(
        "sysctls of the host's network",
        SECURITY,
        'if name.startswith("net.") and',
        "if False and",
        "test_S13_safe_sysctls_are_for_namespaces_of_ones_own",
    ),
    weak(
        "any sysctl in the runtime",
        OPERATIONS,
        "if namespace_of_sysctl(name) not in own:",
        "if False:",
        "test_S13_the_runtime_itself_refuses_sysctls_of_the_machine",
        "test_S13_sysctls_are_set_in_the_containers_namespaces",
    ),
    weak(
        "dots in sysctls",
        NAMESPACES,
        'if not {"", ".", ".."}.isdisjoint(parts):',
        "if False:",
        "test_S13_the_runtime_itself_refuses_sysctls_of_the_machine",
    ),
    weak(
        "pods in the host's network",
        "runtime/oci_config.py",
        '"network": not config.host_network,',
        '"network": False,',
        "test_S14_namespaces_are_the_hosts_only_where_asked",
    ),
    weak(
        "pods in the host's IPC",
        "runtime/oci_config.py",
        '"ipc": not config.host_ipc,',
        '"ipc": False,',
        "test_S14_namespaces_are_the_hosts_only_where_asked",
    ),
    weak(
        "containers share processes",
        "runtime/oci_config.py",
        "if not sandbox.host_pid and not sandbox.share_process_namespace:",
        "if False:",
        "test_S14_namespaces_are_the_hosts_only_where_asked",
    ),
    weak(
        "prepared starts do not look again for what was missing",
        RECORDER,
        '            self._ask("openat2", arguments, -(error.errno or 0))\n',
        "",
        "test_S05_a_path_that_appears_after_the_creation_is_masked",
    ),
    weak(
        "host's cgroups shown",
        SPEC,
        'mounts.append(_mount("/sys", "sysfs", "sysfs", *sys_options))',
        'mounts.append(_mount("/sys", "bind", "/sys", "rbind", *sys_options))',
        "test_S06_no_mount_of_the_hosts_sys_is_writable",
    ),
)
