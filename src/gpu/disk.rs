//! Compiled pipelines on disk, for drivers that take them back: of Vulkan, as far as wgpu goes.
//! Other drivers, and many of these, keep compiled shaders on their own.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::gpu::context::lock;

/// A pipeline cache with the file that it comes from and goes to. Whatever fails here costs time
/// only, so it is logged and forgotten.
pub struct DiskCache {
    pub raw: wgpu::PipelineCache,
    file: PathBuf,
    saved: Mutex<Vec<u8>>,
}

impl DiskCache {
    /// The cache of an adapter in `folder`; none where the driver has no use for it.
    pub fn open(device: &wgpu::Device, adapter: &wgpu::AdapterInfo, folder: &Path) -> Option<Self> {
        let key = wgpu::util::pipeline_cache_key(adapter)?;
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(format!("{key}.bin"));
        let data = std::fs::read(&file).unwrap_or_default();
        Some(Self { raw: create(device, &data), file, saved: Mutex::new(data) })
    }

    /// Writes what the driver compiled since, if anything.
    pub fn save(&self) {
        let Some(data) = self.raw.get_data() else { return };
        let mut saved = lock(&self.saved);
        if *saved == data {
            return;
        }
        if let Err(error) = replace(&self.file, &data) {
            log::debug!("the pipeline cache {} was not written: {error}", self.file.display());
        }
        *saved = data;
    }
}

#[expect(unsafe_code, reason = "a driver trusts the data of a pipeline cache")]
fn create(device: &wgpu::Device, data: &[u8]) -> wgpu::PipelineCache {
    // SAFETY: the file lies in the user's own cache folder and was written by `save`. wgpu compares
    // its header with adapter and driver, and starts empty where they differ.
    unsafe {
        device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
            label: Some("wgllama"),
            data: (!data.is_empty()).then_some(data),
            fallback: true,
        })
    }
}

/// Puts `data` in the place of `file`, so that others see the old one or the new one.
fn replace(file: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&temporary, data)
        .and_then(|()| std::fs::rename(&temporary, file))
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}
