"""Weakenings of what keeps a container inside: lines E01 to E21 (see weakenings.py)."""

from __future__ import annotations

from tests.security.weakening import Weakening, weak

BARE = "runtime/bare.py"
DEVICES = "runtime/devices.py"
LAUNCH_MOUNTING = "runtime/mounting.py"
MOUNTS = "runtime/mounts.py"
NAMESPACES = "runtime/namespaces.py"
OPERATIONS = "runtime/operations.py"
PROCESS = "runtime/process.py"
RECORDER = "runtime/recorder.py"
SESSION = "runtime/session.py"

NOT_AGAIN = (
    "runtime/oci_cli.py",
    'if os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:',
    "if True:",
)

WEAKENINGS = (
    weak(
        "a log may be anything",
        "runtime/logs.py",
        "    if not stat.S_ISREG(os.fstat(descriptor).st_mode):\n",
        "    if False:\n",
        "test_E20_a_pipe_in_place_of_the_log_does_not_stop_the_shim",
    ),
    weak(
        "what the caller closes stays closed",
        "runtime/oci_cli.py",
        "    _have_streams()\n    _use_a",
        "    _use_a",
        "test_E02_what_a_caller_closes_is_no_descriptor_of_ours",
    ),
    weak(
        "masks writable",
        MOUNTS,
        "            kernel.mount_setattr(tree, set=ATTR_RDONLY)\n        except",
        "            pass\n        except",
        "test_E07_the_hosts_null_cannot_be_changed_through_a_mask",
    ),
    weak(
        "masks of a pod's containers writable",
        BARE,
        "kernel.mount_setattr(mask, set=ATTR_RDONLY, propagation=MS_PRIVATE)",
        "kernel.mount_setattr(mask, propagation=MS_PRIVATE)",
        "test_E07_nor_through_one_of_a_pods_container",
    ),
    weak(
        "the host's null for an input",
        SESSION,
        'os.open("/proc/self/fd/0", os.O_RDWR | os.O_CLOEXEC)',
        'os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)',
        "test_E07_nor_through_the_standard_input",
    ),
    weak(
        "magic links executed",
        PROCESS,
        'how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, NO_MAGICLINKS)',
        'how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, 0)',
        "test_E01_an_image_cannot_run_the_starters_own_program",
        "test_E01_a_compiled_exec_does_not_run_the_starters_own_program",
    ),
    weak(
        "the command line's Python not executed again",
        *NOT_AGAIN,
        "test_E01_the_program_of_pips_entry_point_cannot_be_written",
    ),
    Weakening(
        "the command line's Python executed by its path",
        (
            ("runtime/oci_launcher.py", "reason = unstartable(python, str(starter))", 'reason = "weakened"'),
            NOT_AGAIN,
        ),
        (
            "test_E01_the_command_lines_program_cannot_be_written",
            "test_E01_a_swapped_program_cannot_overwrite_the_command_lines",
        ),
    ),
    Weakening(
        "the command line's Python in a mount that stays writable",
        (
            NOT_AGAIN,
            ("runtime/oci_start.py", "6a006a006a006a014489e7", "6a006a006a006a004489e7"),
            ("runtime/oci_start.py", "ff7fbfa9290080d2e97fbfa9", "ff7fbfa9090080d2e97fbfa9"),
        ),
        (
            "test_E01_the_command_lines_program_cannot_be_written",
            "test_E01_a_swapped_program_cannot_overwrite_the_command_lines",
        ),
    ),
    weak(
        "interpreters of scripts not looked at",
        PROCESS,
        "programs = (context.executable, *interpreters(kernel, context.executable))",
        "programs = (context.executable,)",
        "test_E01_an_image_cannot_have_its_scripts_run_by_the_starters_own_program",
    ),
    weak(
        "a module imported inside",
        NAMESPACES,
        "        kernel.setns(fd, flags_of(self.kinds))\n",
        "        kernel.setns(fd, flags_of(self.kinds))\n        import colorsys\n",
        "test_E01_nothing_is_imported_from_a_container",
    ),
    weak(
        "hooks with the image's environment",
        OPERATIONS,
        "env if hook.env is None else hook.env",
        "(spec.process.env if spec.process else env) if hook.env is None else hook.env",
        "test_E01_a_hook_of_the_hosts_does_not_get_the_containers_environment",
    ),
    weak(
        "interpreter writable",
        LAUNCH_MOUNTING,
        "        kernel.mount_setattr(tree, set=ATTR_RDONLY)\n",
        "        pass\n",
        "test_E01_the_shims_program_cannot_be_written",
    ),
    weak(
        "a descriptor is kept open",
        PROCESS,
        'context.child(Step("close_range", (self.first, 0xFFFFFFFF, how)))',
        "return",
        "test_E02_nothing_is_inherited",
        "test_E02_a_compiled_exec_inherits_nothing_and_works_inside",
    ),
    weak(
        "descriptors are closed by the execve alone",
        PROCESS,
        "how = CLOSE_RANGE_UNSHARE if self.now else CLOSE_RANGE_CLOEXEC",
        "how = CLOSE_RANGE_CLOEXEC",
        "test_E02_no_program_is_reached_through_a_descriptor_of_ours",
    ),
    weak(
        "the container's null opened by its path",
        PROCESS,
        'Step("openat", (context.host_proc, f"self/fd/{own}", os.O_RDWR',
        'Step("openat", (AT_FDCWD, NULL, os.O_RDWR',
        "test_E02_a_null_device_that_becomes_a_link_is_not_followed",
    ),
    weak(
        "working directory by the host's /proc",
        PROCESS,
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
        "children that were stopped are waited for",
        "runtime/stopped.py",
        "if _is_stopped(pid):",
        "if False:",
        "test_E03_a_container_that_stops_what_enters_it_does_not_stop_its_shim",
    ),
    weak(
        "/proc and /sys through symlinks",
        LAUNCH_MOUNTING,
        "resolve = INSIDE if symlinks else INSIDE | NO_SYMLINKS",
        "resolve = INSIDE",
        "test_E04_an_image_with_proc_or_sys_as_symlink_is_refused",
    ),
    weak(
        "volumes over /proc",
        MOUNTS,
        "if place[1] not in procfs.ALLOWED:",
        "if False:",
        "test_E05_a_volume_over_proc_is_refused",
    ),
    weak(
        "prepared starts follow links",
        RECORDER,
        "flags | os.O_CLOEXEC, mode, resolve)",
        "flags | os.O_CLOEXEC, mode, resolve & ~NO_SYMLINKS)",
        "test_E04_a_proc_that_becomes_a_symlink_after_the_creation_is_refused",
    ),
    weak(
        "RESOLVE_IN_ROOT off",
        LAUNCH_MOUNTING,
        "INSIDE = IN_ROOT | NO_MAGICLINKS",
        "INSIDE = 0",
        "test_E06_E10_a_swapped_symlink_never_leads_outside",
    ),
    weak(
        "look-ups given up at once",
        "runtime/linux.py",
        "        for _ in range(LOOK_UPS):\n",
        "        for _ in range(1):\n",
        "test_E06_a_rename_elsewhere_refuses_no_look_up",
    ),
    weak(
        "mounts by path",
        MOUNTS,
        "            return make_inside(kernel, context.root, self.destination, folder=f"
        "older, symlinks=symlinks)",
        '            path = os.path.realpath(f"/proc/self/fd/{context.root}{self.destination}")\n'
        "            os.makedirs(path, exist_ok=True)\n            return kernel.open(path, os.O_PATH)",
        "test_E06_symlinks_of_the_image_cannot_lead_a_mount_outside",
    ),
    weak(
        "mkdir through symlinks",
        LAUNCH_MOUNTING,
        "            kernel.mkdir(name, 0o755, dir_fd=parent)",
        '            os.mkdir("/proc/self/fd/%d/%s" % (root, "/".join(names)), 0o755)',
        "test_E06_E10_a_swapped_symlink_never_leads_outside",
    ),
    weak(
        "another null accepted",
        DEVICES,
        "if status.mode & 0o170000 != kind or status.rdev != number:",
        "if False:",
        "test_E07_masks_do_not_come_from_the_images_null",
    ),
    weak(
        "console through a symlink",
        DEVICES,
        "if kernel.fstat(target).mode & 0o170000 == 0o120000:",
        "if False:",
        "test_E08_the_console_is_no_link",
    ),
    weak(
        "sysctls through mounts",
        NAMESPACES,
        "resolve = 0x01 | 0x02 | 0x04 | 0x08",
        "resolve = 0",
        "test_E09_a_sysctl_is_written_to_a_real_procfs",
    ),
    weak(
        "any /proc will do",
        NAMESPACES,
        "if kernel.filesystem(context.host_proc) != PROC_SUPER_MAGIC:",
        "if False:",
        "test_E09_a_proc_that_is_none_is_not_written_to",
    ),
    weak(
        "/dev through symlinks",
        DEVICES,
        "folders[folder] = make_inside(kernel, context.root, folder)",
        'folders[folder] = kernel.open(os.path.realpath(f"/proc/self/fd/{context.root}{folder}"), os.O_PATH)',
        "test_E11_links_and_devices_are_not_made_outside",
    ),
    weak(
        "no new cgroup namespace",
        NAMESPACES,
        'context.child(Step("unshare", (FLAGS["cgroup"],)))',
        "return",
        "test_E12_no_writable_v1_cgroup_or_release_agent",
    ),
    weak(
        "no session of its own",
        PROCESS,
        '        context.child(Step("setsid"))\n',
        "",
        "test_E14_an_exec_is_a_session_of_its_own",
    ),
    weak(
        "no controlling terminal",
        PROCESS,
        '            context.child(Step("ioctl", (0, TIOCSCTTY, 0)))',
        "            pass",
        "test_E14_the_terminal_is_a_new_one_and_controlling",
    ),
    weak(
        "old root kept",
        MOUNTS,
        '            kernel.umount(".", MNT_DETACH)\n',
        "",
        "test_E15_nothing_of_the_old_root_is_left",
    ),
    weak(
        "propagation not cut",
        MOUNTS,
        'flags = PROPAGATION[name] | (MS_REC if self.propagation.startswith("r") and name != "" else 0)\n'
        '        kernel.mount("", "/", "", flags, "")',
        "return",
        "test_E15_a_shared_host_mount_is_cut_off",
    ),
    weak(
        "pause is root",
        OPERATIONS,
        "SetCredentials(PAUSE_USER, PAUSE_USER, (), bits(None)),",
        "",
        "test_E17_pause_reaps_and_cannot_be_killed_from_a_shared_pid_namespace",
    ),
    weak(
        "no network of its own",
        OPERATIONS,
        '"network", "time", "pid")',
        '"time", "pid")',
        "test_E18_net_admin_ends_at_the_pods_network",
    ),
    weak(
        "start time not compared",
        NAMESPACES,
        "if self.start_time is not None and",
        "if False and",
        "test_E19_a_recycled_pid_is_not_entered",
    ),
    weak(
        "agent sockets open to all",
        "runtime/shim_link.py",
        "os.chmod(path, 0o600)",
        "os.chmod(path, 0o666)",
        "test_E13_no_socket_can_be_reached_from_a_container",
    ),
    weak(
        "log written through links",
        "runtime/logs.py",
        " | os.O_NOFOLLOW",
        "",
        "test_E20_a_link_in_place_of_the_log_is_not_written_through",
    ),
    weak(
        "log read through links",
        "kubelet_py/server/logs.py",
        " | os.O_NOFOLLOW)",
        ")",
        "test_E20_a_link_in_place_of_the_log_is_not_read",
    ),
    weak(
        "last words through links",
        "kubelet_py/pods/last_words.py",
        "flags | os.O_NOFOLLOW | os.O_NONBLOCK",
        "flags | os.O_NONBLOCK",
        "test_E20_last_words_are_read_from_a_plain_file_only",
    ),
    weak(
        "the image's own files",
        "kubelet_py/pods/files.py",
        'if path not in taken and "/etc" not in taken',
        "if False",
        "test_E21_files_of_the_pod_are_the_agents_own",
    ),
    weak(
        "prepared containers begin among the host's mounts",
        OPERATIONS,
        '            *([JoinNamespace("mount", bare.path)] if bare else []),\n',
        "",
        "test_E15_nothing_of_the_host_lies_below_a_prepared_containers_root",
    ),
)
