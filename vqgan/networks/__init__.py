"""Networks between pixels and latents. Each entry builds the four modules of a `Coders` from a `VQConfig`."""

from cm3.core.registry import Registry

NETWORKS = Registry(
    "network",
    {
        "patch": "vqgan.networks.patch:build",
        "taming": "vqgan.networks.taming:build",
        "dvae": "vqgan.networks.dvae:build",
    },
)
