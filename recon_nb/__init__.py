"Understand, and use, self-supervised learning by reconstructing images."
__version__ = "0.2.0"

# Names are fetched when they are asked for: `import recon_nb` costs nothing.
_where = dict(
    train_gan='training', GANRun='run', export_encoder='export', load_pretrained='export',
    compare_runs='compare', check_pipeline='guards', probe='classification',
    probe_dense='segmentation', OnlineProbe='online', load_photos='data', clear_cache='photos',
    ReconFeatures='estimator', probe_detect='detection',
    PRESETS='config', GANConfig='config', InputError='core')
__all__ = list(_where)


def __getattr__(name):
    if name not in _where: raise AttributeError(f"module 'recon_nb' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f'.{_where[name]}', __name__), name)


def __dir__(): return [*globals(), *__all__]
