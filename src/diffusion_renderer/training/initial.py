"""Initial weights that let a small network learn quickly: every residual branch starts near zero."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import nn

from diffusion_renderer.models import AutoencoderKLTemporalDecoder
from diffusion_renderer.models.autoencoder import PatchEncoder

#: Logarithm of the variance of a latent's posterior at the start.
START_LOGARITHM = -6.0


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Variance-preserving convolutions, and a silent last layer in every residual and attention branch.

    The network starts as its plain skeleton. Temporal branches and attention start at exactly zero (a video starts as so many
    stills), spatial residuals at a tenth. PyTorch's default instead shrinks the signal threefold in variance per convolution
    and adds constants of its size: the autoencoder then stayed at 13 dB where this start reaches 16.5 dB in 75 steps.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, TemporalResnetBlock):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
        elif isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(0.1)
        elif isinstance(module, Attention):
            module.to_out[0].weight.zero_()
            module.to_out[0].bias.zero_()


@torch.no_grad()
def initialize_autoencoder(vae: AutoencoderKLTemporalDecoder) -> None:
    """`initialize` the decoder, its last temporal convolution as the identity, and the encoder where it is not linear.

    Such an encoder's posterior starts narrow: one as wide as the latents' own spread hides the image from the decoder.
    """
    if not isinstance(vae.encoder, PatchEncoder):
        initialize(vae.encoder)
        nn.init.dirac_(vae.quant_conv.weight)
        nn.init.zeros_(vae.quant_conv.bias)
        vae.quant_conv.weight[vae.config.latent_channels :] = 0.0
        vae.quant_conv.bias[vae.config.latent_channels :] = START_LOGARITHM
    initialize(vae.decoder)
    last = vae.decoder.time_conv_out
    last.weight.zero_()
    last.weight[:, :, last.kernel_size[0] // 2, 0, 0] = torch.eye(last.out_channels)
