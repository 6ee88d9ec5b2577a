"""Weakenings of images and of the Kubernetes layer: lines I01, I02 and K01 to K10 (see weakenings.py)."""

from __future__ import annotations

from tests.security.weakening import Weakening, weak

PROCESS = "runtime/process.py"
UNPACK = "runtime/images/unpack.py"
STORE = "runtime/images/store.py"
TRANSPORT = "runtime/images/transport.py"
MANIFEST = "runtime/images/manifest.py"
NODE_ACCESS = "controlplane/apiserver/node_access.py"

WEAKENINGS = (
    weak(
        "tar: RESOLVE_IN_ROOT off",
        "runtime/images/rooted.py",
        "_RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT",
        "0",
        "test_I01_a_layer_stays_in_its_folder",
    ),
    weak(
        "tar: dots kept",
        UNPACK,
        'if b".." in parts or b"\\0" in name:',
        "if False:",
        "test_I01_names_with_dots_are_refused",
    ),
    weak(
        "tar: files through links",
        UNPACK,
        "_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC",
        "_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC",
        "test_I01_a_layer_stays_in_its_folder",
        "test_I01_a_later_entry_replaces_an_earlier_one",
    ),
    weak(
        "tar: any attribute",
        UNPACK,
        'if key.startswith("trusted."):',
        "if False:",
        "test_I01_attributes_that_steer_overlayfs_are_refused",
    ),
    weak(
        "tar: any device",
        UNPACK,
        'if entry.kind == "char" and (entry.major, entry.minor) in _DEVICES:',
        "if True:",
        "test_I01_devices_of_the_machine_are_refused",
    ),
    weak(
        "tar: any sparse file",
        UNPACK,
        "if where.size > self._limits.bytes:",
        "if False:",
        "test_I01_a_sparse_file_has_the_layers_limit",
    ),
    weak(
        "tar: mode not set",
        UNPACK,
        "os.fchmod(descriptor, entry.mode)  # after chown, which clears setuid",
        "os.fchmod(descriptor, entry.mode & 0o777)",
        "test_I01_setuid_is_kept_only_where_the_layer_says_so",
    ),
    weak(
        "tar: any number of entries",
        UNPACK,
        "if entries > limits.entries:",
        "if False:",
        "test_I01_a_layer_has_limits",
    ),
    weak(
        "gzip bomb",
        "runtime/images/plain.py",
        "if self.length > self._limit:",
        "if False:",
        "test_I01_a_layer_has_limits",
    ),
    weak(
        "digest check off",
        MANIFEST,
        "    if actual != digest:\n",
        "    if False:\n",
        "test_I02_a_manifest_that_is_not_the_asked_one_is_refused",
    ),
    weak(
        "any blob",
        "runtime/images/registry.py",
        "if actual != self._descriptor.digest:",
        "if False:",
        "test_I02_a_changed_blob_is_refused",
    ),
    weak(
        "any layer",
        STORE,
        "if found.diff_id != layer.diff_id:",
        "if False:",
        "test_I01_a_layer_that_is_not_the_announced_one_is_refused",
    ),
    weak(
        "manifests of any size",
        "runtime/images/transport.py",
        "if len(data) > limit:",
        "if False:",
        "test_I02_a_manifest_has_a_size_limit",
    ),
    weak(
        "the token to every host",
        "runtime/images/transport.py",
        "            if self._is_own(url):\n",
        "            if True:\n",
        "test_I02_credentials_stay_with_their_host",
    ),
    weak(
        "everybody says where credentials go",
        TRANSPORT,
        "if response.status_code == 401 and self._is_own(response.url):",
        "if response.status_code == 401:",
        "test_I02_only_the_registry_says_where_credentials_go",
    ),
    weak(
        "challenges searched everywhere",
        TRANSPORT,
        "(?<![a-zA-Z])([a-zA-Z]{1,32})=",
        "([a-zA-Z]+)=",
        "test_I02_a_challenge_without_end_is_not_searched_for_ever",
    ),
    weak(
        "tokens of any size",
        TRANSPORT,
        'json.loads(self.read_small(response, _MAX_TOKEN, "token"))',
        "response.json()",
        "test_I02_a_token_has_a_size_limit",
    ),
    Weakening(
        "answers of any depth",
        (
            (TRANSPORT, "except (ValueError, RecursionError, AttributeError) as", "except ValueError as"),
            (TRANSPORT, "except (ValueError, RecursionError, KeyError, ", "except (ValueError, KeyError, "),
        ),
        ("test_I02_answers_that_are_nested_deeply_are_refused",),
    ),
    weak(
        "documents of any depth",
        "runtime/images/archive.py",
        "except (ValueError, RecursionError) as",
        "except ValueError as",
        "test_I02_documents_of_archives_that_are_nested_deeply_are_refused",
    ),
    weak(
        "layers open to all",
        STORE,
        "os.chmod(self._root, 0o700)",
        "os.chmod(self._root, 0o755)",
        "test_I01_setuid_files_of_images_are_out_of_reach_of_the_hosts_users",
    ),
    weak(
        "plain HTTP everywhere",
        "runtime/images/transport.py",
        "if not (self._insecure or is_loopback(host)):",
        "if False:",
        "test_I02_there_is_no_way_down_to_plain_http",
    ),
    weak(
        "two documents in one",
        MANIFEST,
        "if has_index and has_manifest:",
        "if False:",
        "test_I02_a_media_type_that_contradicts_its_document_is_refused",
    ),
    weak(
        "subPath through links",
        "kubelet_py/volumes/subpath.py",
        "0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)",
        "0, 0)",
        "test_K01_a_subpath_does_not_follow_a_link_out",
        "test_K01_a_subpath_that_changes_meanwhile_stays_inside",
    ),
    weak(
        "route_localnet on",
        "kubelet_py/node/routes.py",
        '((_FORWARD, "1"),',
        '((_FORWARD, "1"), ("net/ipv4/conf/all/route_localnet", "1"),',
        "test_K03_a_neighbour_does_not_reach_the_nodes_loopback",
    ),
    weak(
        "external addresses served",
        "proxy/changes.py",
        "ingress_ips=_ingress(service, version),",
        'ingress_ips=tuple(spec.get("externalIPs") or ()),',
        "test_K04_external_addresses_of_a_service_take_no_traffic",
    ),
    weak(
        "git volumes are empty folders",
        "kubelet_py/volumes/manager.py",
        'case "emptyDir":',
        'case "emptyDir" | "gitRepo":',
        "test_K05_there_are_no_git_repo_volumes",
    ),
    weak(
        "hostPath with dots",
        "kubelet_py/volumes/host_path.py",
        'if ".." in path.parts:',
        "if False:",
        "test_K06_a_host_path_has_no_dots",
    ),
    weak(
        "secrets on the disk",
        "kubelet_py/volumes/manager.py",
        "            mounting.mount_tmpfs(folder, mode=0o1777)\n",
        "            pass\n",
        "test_K08_secrets_lie_in_memory_and_nobody_else_reads_their_name",
    ),
    weak(
        "plans tell the environment",
        PROCESS,
        """return f'execute "{self.args[0]}"'""",
        """return f'execute "{self.args[0]}" {self.env}'""",
        "test_K08_what_an_environment_holds_is_told_nowhere",
    ),
    weak(
        "records for everybody",
        "runtime/state.py",
        "os.O_TRUNC | os.O_CLOEXEC, 0o600)\n    try:\n        left = memoryview(json_text",
        "os.O_TRUNC | os.O_CLOEXEC, 0o644)\n    try:\n        left = memoryview(json_text",
        "test_K08_what_a_container_was_started_with_is_roots_alone",
    ),
    weak(
        "any node's pods",
        NODE_ACCESS,
        'return entry is None or selectable_fields(_PODS, entry)["spec.nodeName"] == node',
        "return True",
        "test_K09_a_kubelet_changes_only_the_pods_of_its_node",
    ),
    weak(
        "any Secret and claim",
        NODE_ACCESS,
        "return bool(name) and (_GUARDED[resource], namespace, name) in self._of_node(node)",
        "return True",
        "test_K09_a_kubelet_reads_only_what_its_pods_name",
    ),
    Weakening(
        "any node",
        (
            (
                NODE_ACCESS,
                '            return name == node\n        if resource == "leases"',
                '            return True\n        if resource == "leases"',
            ),
            (
                "controlplane/apiserver/node_restriction.py",
                "    if name != user.node_name:\n        raise forbidden(info, name, f'node",
                "    if False:\n        raise forbidden(info, name, f'node",
            ),
        ),
        ("test_K09_a_kubelet_is_its_own_node_and_no_other",),
    ),
    weak(
        "signatures not checked",
        "controlplane/apiserver/tokens.py",
        """raise BadTokenError("the token's signature is wrong") from error""",
        "log_nothing = error",
        "test_K09_a_pods_account_changes_no_pods",
    ),
    weak(
        "..data is believed",
        "kubelet_py/volumes/atomic_writer.py",
        'ours = target.startswith("..") and len(target) > 2 and "/" not in target',
        "ours = bool(target)",
        "test_K02_the_atomic_writer_deletes_nothing_through_links",
    ),
)
