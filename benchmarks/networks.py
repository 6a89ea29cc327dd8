"""Untrained networks for latency measurements, which do not depend on the weights."""

from tfspline import models

NETWORKS = {
    "resnet56": lambda keras: models.build("resnet56", (32, 32, 3), 10, keras=keras.__name__),
    "resnet50": lambda keras: keras.applications.ResNet50(weights=None),
    "vgg16": lambda keras: keras.applications.VGG16(weights=None),
    "mobilenetv2": lambda keras: keras.applications.MobileNetV2(weights=None),
}
