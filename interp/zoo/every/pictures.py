"""What is said of image models by name: channels by stage, what a detector takes of its backbone, windows of towers."""

from __future__ import annotations

from collections.abc import Mapping

from interp.zoo.every.said import Said, inside

STAGES: Said = {
    "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 4,
}  # fmt: skip
HGNET: Said = {
    "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 16, 32, 48], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 32, 48, 64],
    "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1],
}  # fmt: skip
PYRAMID: Said = {"encoder_in_channels": [32, 48, 64], "decoder_in_channels": [32, 32, 32]}
"""What a detector takes of a backbone whose stages have 16, 32, 48 and 64 channels."""
OVER_HGNET: Said = {**inside("backbone_config", HGNET), **PYRAMID}
SLICES = ["stage1", "stage2", "stage3", "stage4"]
SAM: Said = {
    "prompt_encoder_config.image_embedding_size": 4,
    "vision_config.output_channels": 32, "vision_config.num_pos_feats": 16,
    "vision_config.global_attn_indexes": [1], "vision_config.window_size": 2,
}  # fmt: skip
LEVELS = [[16, 16], [8, 8], [4, 4]]
HIERA: Said = {
    "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128], "hidden_size": 16,
    "global_attention_blocks": [3], "image_size": [64, 64], "window_size_per_stage": [4, 4, 4, 4],
    "window_positional_embedding_background_size": [4, 4],
}  # fmt: skip
FPN: Said = {
    **inside("backbone_config", HIERA), "backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": LEVELS,
}  # fmt: skip
SAM2: Said = {
    **inside("vision_config", FPN), "prompt_encoder_config.image_size": 64, "prompt_encoder_config.patch_size": 16,
}  # fmt: skip
NET: Said = {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
TINY: Said = {"image_size": 32, "patch_size": 8}
RATIOS = (("long", 7), ("mid", 5), ("short", 3))
INTRACLASS: Said = {
    "reduce_channel": [1, 1, 0],
    "return_channel": [1, 1, 0],
    **{f"vertical_long_to_small_conv_{name}ratio": [(k, 1), (1, 1), (k // 2, 0)] for name, k in RATIOS},
    **{f"horizontal_small_to_long_conv_{name}ratio": [(1, k), (1, 1), (0, k // 2)] for name, k in RATIOS},
    **{f"symmetric_conv_long_{name}ratio": [(k, k), (1, 1), (k // 2, k // 2)] for name, k in RATIOS},
}
"""Kernel, stride and padding of each of its convolutions."""


def _backbone(model_type: str, stages: list[str], **values: object) -> Said:
    return {"backbone_config": {"model_type": model_type, "out_features": stages, **values}}


GIVEN_PICTURES: Mapping[str, Said] = {
    "lw_detr": {
        "projector_scale_factors": [1.0],
        **_backbone("lw_detr_vit", SLICES, num_hidden_layers=4, window_block_indices=[0, 2]),
    },
    "pp_ocrv6_medium_det": _backbone("hgnet_v2", SLICES),
    "pp_ocrv6_small_det": _backbone("pp_lcnet_v3", [*SLICES[1:], "stage5"]),
    "rf_detr": _backbone("rf_detr_dinov2", SLICES, num_hidden_layers=4, window_block_indexes=[0, 2]),
    "uvdoc": _backbone("uvdoc_backbone", [*SLICES, "stage5", "stage6"]),
}
PICTURES: Mapping[str, Said] = {
    "swin": STAGES,
    "swinv2": STAGES,
    "donut-swin": STAGES,
    "align": inside("vision_config", {**NET, "hidden_dim": 128}),
    "bit": {"num_groups": 8},
    "d_fine": OVER_HGNET,
    "deformable_detr": {"num_feature_levels": 3},
    "deimv2": OVER_HGNET,
    "depth_pro": {
        "patch_size": 32,
        "image_size": 128,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [32, 32],
        "scaled_images_feature_dims": [32, 32, 32],
        **inside("image_model_config", TINY),
        **inside("patch_model_config", TINY),
        **inside("fov_model_config", TINY),
    },
    "edgetam_video": SAM2,
    "efficientnet": NET,
    "hgnet_v2": HGNET,
    "levit": {
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "key_dim": [8, 8, 8],
        "patch_size": 16,
        "image_size": 64,
        "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]],
    },
    "lw_detr": inside("backbone_config", {"num_hidden_layers": 4, "num_windows": 4, "num_windows_side": 2}),
    "mobilevitv2": {"image_size": 64},
    "omdet-turbo": {"timm_kwargs": {}, **PYRAMID},
    "pp_doclayout_v3": {"x4_feat_dim": 16, **OVER_HGNET},
    "pp_doclayout_v4": OVER_HGNET,
    "pp_ocrv5_mobile_rec": {"image_size": 96},
    "pp_ocrv6_medium_det": {
        "intraclass_block_config": INTRACLASS,
        "kernel_list": [3, 2, 2],
        "scale_factor_list": [1, 2, 4, 8],
        **inside("backbone_config", HGNET),
    },
    "pp_ocrv6_small_det": {"layer_list_out_channels": [64, 128, 256, 512], "backbone_config.depths": [1, 2, 2, 5, 4]},
    "radio": {"patch_dim": 192},
    "rf_detr": inside("backbone_config", {"num_hidden_layers": 4, "num_windows": 2}),
    "rt_detr": PYRAMID,
    "rt_detr_v2": PYRAMID,
    "sam": SAM,
    "seggpt": {"image_size": [64, 32], "pretrain_image_size": 32, "intermediate_hidden_state_indices": [0, 1]},
    "sam2": SAM2,
    "sam2_hiera_det_model": HIERA,
    "sam2_video": SAM2,
    "sam2_vision_model": FPN,
    "sam3_tracker": inside(
        "vision_config", {"backbone_feature_sizes": LEVELS, "backbone_config.global_attn_indexes": [1]}
    ),
    "sam_hq": {**SAM, "mask_decoder_config.vit_dim": 32},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2]},
    "textnet": {"stem_out_channels": 16, "image_size": (64, 64)},
    "uvdoc": {"backbone_config.depths": [1, 1, 1, 3, 3, 3]},
}
