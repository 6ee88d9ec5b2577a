"""What can go wrong in the proxy.

ProxyError
├─ ConfigError      a flag or a KubeProxyConfiguration field that cannot be used
├─ IptablesError    iptables is missing, mixed, or refused the rules
└─ NftError         nf_tables refused a transaction (proxy/nfnetlink.py; has errno and element)
   └─ Conflict      somebody else changed the rules since they were looked at
"""


class ProxyError(Exception):
    """Any failure of the proxy; the text is one line for the user."""


class ConfigError(ProxyError):
    pass


class IptablesError(ProxyError):
    pass
