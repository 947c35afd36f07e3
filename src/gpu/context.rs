//! The device and all that belongs to it for as long as it lives.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::caps::{AdapterKind, Caps};
use crate::error::{Error, Result};
use crate::gpu::adapters::{self, AdapterReport, Found};
use crate::gpu::buffers::Memory;
use crate::gpu::disk::DiskCache;
use crate::gpu::pace::{DEFAULT_BOUND, Pace};
use crate::gpu::pipelines::Pipelines;
use crate::kernels::Variant;

/// Which device to open, and how.
#[derive(Debug, Clone, Default)]
pub struct ContextOptions {
    /// Index, kind, or part of the name of the adapter; the best one if none is named.
    pub device: Option<String>,
    /// Open the device with no more than what WebGPU guarantees everywhere.
    pub baseline: bool,
    /// Compile shaders with all of the run-time checks; for debugging.
    pub checked: bool,
    /// Choose kernels as for an adapter of this kind; for debugging.
    pub treat_as: Option<AdapterKind>,
    /// A folder that keeps compiled pipelines for the next start, where the driver gives them out.
    pub pipeline_cache: Option<PathBuf>,
    /// How long a submit may keep the device busy; by default 200 ms. Prompts are fed in smaller steps, and
    /// steps cut into several submits, where this would be exceeded otherwise.
    pub longest_submit: Option<Duration>,
    /// Bytes of buffers that may be on the device at a time; by default as many as the driver gives.
    pub memory: Option<u64>,
    /// Leaves out the comparison with the CPU that sessions make of each variant of a kernel before they rely
    /// on it.
    pub skip_self_check: bool,
    /// Faults to be had on purpose, for tests of what follows.
    #[doc(hidden)]
    pub faults: Faults,
}

/// Kernels that are to fail, by a part of their variants' names.
#[doc(hidden)]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Those that compute nothing.
    pub idle: Option<String>,
    /// Those that do not compile.
    pub refused: Option<String>,
}

/// Trouble that the driver reported between calls.
#[derive(Debug, Default)]
struct Trouble {
    lost: Option<String>,
    error: Option<String>,
}

/// An open device: shareable, and the owner of all compiled pipelines.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    report: AdapterReport,
    pipelines: Pipelines,
    pace: Pace,
    trouble: Arc<Mutex<Trouble>>,
    created: AtomicU64,
    memory: Memory,
    options: ContextOptions,
    trust: Mutex<Trust>,
}

/// What is relied on.
struct Trust {
    /// What kernels are chosen by.
    caps: Caps,
    /// Variants that computed what the CPU did.
    tried: HashSet<Variant>,
    /// What had to be given up, in words.
    losses: Vec<String>,
}

impl Faults {
    /// What a variant's shader is instead.
    pub(super) fn source(&self, variant: &str) -> Option<&'static str> {
        let named = |part: &Option<String>| part.as_ref().is_some_and(|part| variant.contains(part.as_str()));
        let idle = named(&self.idle).then_some("@compute @workgroup_size(1) fn main() {}");
        idle.or_else(|| named(&self.refused).then_some("refused"))
    }
}

/// A lock that a panic elsewhere does not take away: what it guards is whole at all times.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Permission to use what wgpu calls experimental, if `features` has any of it.
fn experimental(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        allowed()
    } else {
        wgpu::ExperimentalFeatures::disabled()
    }
}

#[expect(unsafe_code, reason = "cooperative matrices, which wgpu may not yet validate in full")]
fn allowed() -> wgpu::ExperimentalFeatures {
    // SAFETY: only cooperative matrices are asked for, and only one kernel of ours uses them. It
    // reads and writes workgroup memory inside of its arrays, in control flow that is uniform
    // in a subgroup, as what such matrices need; tests check its indices with sums of its own.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

impl Context {
    /// Opens a device, waiting for it.
    pub fn new(options: &ContextOptions) -> Result<Self> {
        pollster::block_on(Self::open(options))
    }

    /// Opens a device.
    pub async fn open(options: &ContextOptions) -> Result<Self> {
        // A driver may list an adapter that it then fails to open, as translations of DX12 do that
        // lack something: the next one that fits is taken.
        let mut failure: Option<Error> = None;
        for found in adapters::candidates(options.device.as_deref()).await? {
            match Self::open_adapter(found, options).await {
                Ok(context) => {
                    if let Some(failure) = failure {
                        log::warn!("{failure}; using {} instead", context.adapter().name);
                    }
                    return Ok(context);
                }
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(adapters::none))
    }

    async fn open_adapter(found: Found, options: &ContextOptions) -> Result<Self> {
        let (adapter, mut report) = (found.adapter, found.report);
        let (features, limits) = if options.baseline {
            (wgpu::Features::empty(), wgpu::Limits::default())
        } else {
            (adapters::features(&adapter), adapter.limits())
        };
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("wgllama"),
                required_features: features,
                required_limits: limits.clone(),
                experimental_features: experimental(features),
                memory_hints: wgpu::MemoryHints::Performance,
                trace: wgpu::Trace::Off,
            })
            .await
            .map_err(|e| Error::Gpu { message: format!("{} ({}): {e}", report.name, report.backend) })?;
        report.caps = adapters::caps(&adapter, &limits, features);
        report.caps.kind = options.treat_as.unwrap_or(report.caps.kind);
        log::info!("adapter {} ({}, {})", report.name, report.backend, report.driver);

        // Without handlers wgpu ends the process on the first error.
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        let (on_error, on_loss) = (trouble.clone(), trouble.clone());
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&on_error).error.get_or_insert(error.to_string());
        }));
        device.set_device_lost_callback(move |reason, message| {
            lock(&on_loss).lost.get_or_insert(format!("{reason:?}: {message}"));
        });
        let disk = options.pipeline_cache.as_deref();
        let disk = disk.and_then(|folder| DiskCache::open(&device, &adapter.get_info(), folder));
        let pipelines = Pipelines::new(&device, options.checked, disk);
        let pace = Pace::new(options.longest_submit.unwrap_or(DEFAULT_BOUND));
        let created = AtomicU64::new(0);
        let memory = Memory::new(options.memory);
        let trust = Trust { caps: report.caps.clone(), tried: HashSet::new(), losses: Vec::new() };
        let (trust, options) = (Mutex::new(trust), options.clone());
        let inner =
            Inner { device, queue, report, pipelines, pace, trouble, created, memory, options, trust };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.inner.report.caps
    }

    /// What kernels are chosen by: what the device can do, less what was found not to work.
    pub fn trusted(&self) -> Caps {
        lock(&self.inner.trust).caps.clone()
    }

    /// What was found not to work, in words: each was also logged as a warning.
    pub fn losses(&self) -> Vec<String> {
        lock(&self.inner.trust).losses.clone()
    }

    /// Chooses kernels by `caps` from now on, for a reason.
    pub fn distrust(&self, caps: Caps, reason: &dyn std::fmt::Display) {
        log::debug!("{reason}");
        let reason = reason.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        let text = format!("{reason}; going on without such kernels, which may be slower");
        let mut trust = lock(&self.inner.trust);
        trust.caps = caps;
        if !trust.losses.contains(&text) {
            log::warn!("{text}");
            trust.losses.push(text);
        }
    }

    /// The variants that computed what the CPU did.
    pub fn tried(&self) -> HashSet<Variant> {
        lock(&self.inner.trust).tried.clone()
    }

    /// Adds to these.
    pub fn add_tried(&self, variants: HashSet<Variant>) {
        lock(&self.inner.trust).tried.extend(variants);
    }

    /// How the device was opened.
    pub fn options(&self) -> &ContextOptions {
        &self.inner.options
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// The adapter, with the limits that the device was opened with.
    pub fn adapter(&self) -> &AdapterReport {
        &self.inner.report
    }

    /// An error if the device was lost or reported one since the last call.
    pub fn check(&self) -> Result<()> {
        let mut trouble = lock(&self.inner.trouble);
        if let Some(reason) = trouble.lost.clone() {
            return Err(Error::DeviceLost { reason });
        }
        match trouble.error.take() {
            Some(message) => Err(Error::Gpu { message }),
            None => Ok(()),
        }
    }

    /// Buffers, bind groups and pipelines made so far. A step of a plan that is bound makes none.
    pub fn created(&self) -> u64 {
        self.inner.created.load(Ordering::Relaxed)
    }

    /// The device, for making something that lives on: it is counted.
    pub(super) fn creator(&self) -> &wgpu::Device {
        self.inner.created.fetch_add(1, Ordering::Relaxed);
        self.device()
    }

    /// Drops the device at once, as a failing driver would; for tests of what follows.
    pub fn destroy(&self) {
        self.inner.device.destroy();
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.inner.pace
    }

    pub(super) fn pipelines(&self) -> &Pipelines {
        &self.inner.pipelines
    }

    /// Waits until all submitted work is done.
    pub fn wait(&self) -> Result<()> {
        self.device()
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| self.failed("waiting for the device", &e))?;
        self.idle();
        self.check()
    }

    /// What it means that the API fails at `what`: most of all that the device was lost.
    pub(super) fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> Error {
        // A loss is told when the device is polled; that it fails, too, is known.
        drop(self.device().poll(wgpu::PollType::Poll));
        self.check().err().unwrap_or_else(|| Error::Gpu { message: format!("{what}: {error}") })
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("adapter", &self.inner.report).finish_non_exhaustive()
    }
}
