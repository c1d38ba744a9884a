"""The student with a cross decoder, and the choice between the two kinds of student."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from mimbench.vit.weights import VitSpec
from pretrain.models.autoencoder import MaskedAutoencoder, Outputs
from pretrain.models.cross import CrossDecoder, Queries
from pretrain.models.decoders import DecoderConfig, TokenHead
from pretrain.models.encoder import Encoder, EncoderNoise
from pretrain.models.initial import Source, stream


class CrossAutoencoder(MaskedAutoencoder):
    """Encoder, cross decoder and perhaps a loss predictor; no final norm of the encoder is trained."""

    def __init__(
        self,
        spec: VitSpec,
        decoder: DecoderConfig,
        *,
        outputs: int | None,
        predictor: bool,
        leave: int | None = None,
    ) -> None:
        """Build the networks; the arguments are those of `MaskedAutoencoder`."""
        nn.Module.__init__(self)
        self.spec, self.leave = spec, leave
        self.sources = chosen_features(decoder, spec)
        self.encoder = Encoder(spec)
        # decoders norm what they mix themselves, so this one stays as it is
        self.encoder.norm.requires_grad_(requires_grad=False)
        # other classes at the places of the plain student's: what reads names finds them there
        self.neck = cast(Any, Queries(spec, decoder.width))

        def build(numbers: int) -> CrossDecoder:
            features = len(self.sources)
            return CrossDecoder(decoder, spec.embed_dim, features, numbers, spec.norm_eps)

        self.reconstructor = cast(Any, build(outputs or 3 * spec.patch_size**2))
        self.register_parameter("secondary_token", None)
        self.predictor = None
        if predictor and leave is not None:
            self.predictor = TokenHead(decoder.width, 1, spec.norm_eps)
        elif predictor:
            self.predictor = cast(Any, build(1))
        self.initialise(stream)

    def initialise(self, source: Source) -> None:
        """Set initial values, those of the mixtures too."""
        super().initialise(source)
        for name in ("reconstructor", "predictor"):
            decoder = getattr(self, name)
            if isinstance(decoder, CrossDecoder):
                with source(f"{name}.mix"):
                    nn.init.normal_(decoder.mix, std=decoder.mix.shape[1] ** -0.5)

    def forward(
        self, patches: Tensor, visible: Tensor, hidden: Tensor, noise: EncoderNoise | None = None
    ) -> Outputs:
        """Return latent tokens and what the decoders say about the hidden patches."""
        veil, keep = self.disturbed(noise)
        outputs = self.encoder.outputs(patches, visible, veil=veil, keep=keep)
        features = torch.stack([outputs[i] for i in self.sources])
        asked, decoder = self.neck(hidden), cast(CrossDecoder, self.reconstructor)
        if self.predictor is None:
            return Outputs(outputs[-1], decoder(asked, features), None)
        if self.leave is not None:
            prediction, judged = decoder.with_exit(asked, features, self.predictor, self.leave)
        else:
            prediction = decoder(asked, features)
            judged = self.predictor(asked, features)
        return Outputs(outputs[-1], prediction, judged.squeeze(-1))

    def decode(self, latent: Tensor, visible: Tensor, hidden: Tensor) -> Outputs:
        """Refuse: the last tokens are not enough, every block's are read."""
        raise NotImplementedError


def chosen_features(config: DecoderConfig, spec: VitSpec) -> tuple[int, ...]:
    """Return which of the encoder's outputs are mixed: 0 is its input, 1 the first block's output."""
    return tuple(range(spec.depth + 1)) if config.features is None else config.features


def build_autoencoder(
    spec: VitSpec,
    decoder: DecoderConfig,
    *,
    outputs: int | None,
    predictor: bool,
    leave: int | None = None,
) -> MaskedAutoencoder:
    """Return the student whose decoder is of the configured kind."""
    kind = CrossAutoencoder if decoder.kind == "cross" else MaskedAutoencoder
    return kind(spec, decoder, outputs=outputs, predictor=predictor, leave=leave)
