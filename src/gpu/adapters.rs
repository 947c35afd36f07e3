//! Adapters: which there are, what they can do, and which is picked.

use crate::caps::{AdapterKind, Caps};
use crate::error::{Error, Result};

/// An adapter in words and numbers.
#[derive(Debug, Clone)]
pub struct AdapterReport {
    /// Place in the list; what `--device` takes.
    pub index: usize,
    /// The card.
    pub name: String,
    /// The graphics API.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Limits and features.
    pub caps: Caps,
}

/// An adapter with its report.
pub(super) struct Found {
    pub adapter: wgpu::Adapter,
    pub report: AdapterReport,
}

fn kind(device_type: wgpu::DeviceType) -> AdapterKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Cpu,
        wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

/// What cooperative matrices need: f16 in shaders, and the numbers of subgroups.
const COOP: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// Side of the largest square cooperative matrices that the kernels know.
fn coop(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let offered = adapter.cooperative_matrix_properties();
    let square = |side: u32| {
        let fits = |p: &wgpu::CooperativeMatrixProperties| {
            [p.m_size, p.n_size, p.k_size] == [side; 3] && p.ab_type == F16 && p.cr_type == F32
        };
        offered.iter().any(fits)
    };
    [16, 8].into_iter().find(|side| square(*side))
}

/// The features to open `adapter` with.
pub(super) fn features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let wanted = wgpu::Features::SUBGROUP
        | wgpu::Features::SHADER_F16
        | wgpu::Features::PIPELINE_CACHE
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
    let offered = adapter.features();
    let coop = if offered.contains(COOP) && coop(adapter).is_some() { COOP } else { wgpu::Features::empty() };
    offered & wanted | coop
}

/// Capabilities of `adapter` under `limits` and `features`.
pub(super) fn caps(adapter: &wgpu::Adapter, limits: &wgpu::Limits, features: wgpu::Features) -> Caps {
    let info = adapter.get_info();
    let subgroup = features.contains(wgpu::Features::SUBGROUP) && info.subgroup_min_size > 0;
    Caps {
        kind: kind(info.device_type),
        max_buffer: limits.max_buffer_size,
        // Metal reports more than any kernel's 32-bit indices reach.
        max_storage_binding: limits.max_storage_buffer_binding_size.min((1 << 31) - 4),
        max_uniform_binding: limits.max_uniform_buffer_binding_size,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        max_workgroup_memory: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_groups: limits.max_compute_workgroups_per_dimension,
        subgroup: subgroup.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        coop: if features.contains(COOP) { coop(adapter) } else { None },
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
    }
}

/// Instance with `backends`; flags and backends may be set by wgpu's own variables.
fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends &= backends;
    // FXC, the old compiler, takes a hundred times as long as DXC for some kernels: it is only
    // for systems that lack the new one.
    descriptor.backend_options.dx12.shader_compiler = wgpu::Dx12Compiler::Auto;
    wgpu::Instance::new(descriptor)
}

/// The adapters of `backends` that can run our kernels, best first.
async fn find(backends: wgpu::Backends) -> Vec<Found> {
    let all = instance(backends).enumerate_adapters(backends).await;
    let mut found: Vec<(wgpu::Adapter, wgpu::AdapterInfo)> = all
        .into_iter()
        .map(|a| {
            let info = a.get_info();
            (a, info)
        })
        // Drivers on null hardware list cards that are not there; they lose the device at once.
        .filter(|(_, info)| !info.name.starts_with("Null hardware"))
        .filter(|(a, _)| {
            a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
                && a.limits().max_storage_buffers_per_shader_stage >= Caps::baseline().max_storage_buffers
        })
        .collect();
    // The same card through OpenGL comes after all others of its kind.
    found.sort_by_key(|(_, info)| (kind(info.device_type), info.backend == wgpu::Backend::Gl));
    let report = |(index, (adapter, info)): (usize, (wgpu::Adapter, wgpu::AdapterInfo))| Found {
        report: AdapterReport {
            index,
            name: info.name.clone(),
            backend: format!("{:?}", info.backend).to_lowercase(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            caps: caps(&adapter, &adapter.limits(), features(&adapter)),
        },
        adapter,
    };
    found.into_iter().enumerate().map(report).collect()
}

/// All adapters, best first: discrete, integrated, virtual, CPU. None at all is an error that
/// says how to get one.
pub fn list_adapters() -> Result<Vec<AdapterReport>> {
    let found = pollster::block_on(find(wgpu::Backends::all()));
    if found.is_empty() {
        return Err(none());
    }
    Ok(found.into_iter().map(|f| f.report).collect())
}

/// The adapters that `wanted` names, best first and at least one: by an index, a kind, or a part of
/// a name or backend, in any case. Without a wish all of them.
///
/// OpenGL is asked only where the answer may lie there: it is slow to start, and with NVIDIA's
/// (580.159) a process stood still whose threads started it while others used Vulkan.
pub(super) async fn candidates(wanted: Option<&str>) -> Result<Vec<Found>> {
    let index = wanted.is_some_and(|w| w.parse::<usize>().is_ok());
    if !index {
        let without = find(wgpu::Backends::all() - wgpu::Backends::GL).await;
        match choose(without, wanted) {
            Ok(found) if wanted.is_some() || found.iter().any(|f| f.report.caps.kind != AdapterKind::Cpu) => {
                return Ok(found);
            }
            _ => (),
        }
    }
    choose(find(wgpu::Backends::all()).await, wanted)
}

fn choose(mut found: Vec<Found>, wanted: Option<&str>) -> Result<Vec<Found>> {
    let names = found.iter().map(|f| format!("{} ({}, {})", f.report.index, f.report.name, f.report.backend));
    let available = names.collect::<Vec<_>>().join(", ");
    if found.is_empty() {
        return Err(none());
    }
    let Some(wanted) = wanted else { return Ok(found) };
    let lower = wanted.to_lowercase();
    let index = wanted.parse::<usize>().ok().filter(|i| *i < found.len());
    let matches = |r: &AdapterReport| match index {
        Some(index) => r.index == index,
        // A number that is no index may be part of a name.
        None => {
            r.caps.kind.to_string() == lower || r.name.to_lowercase().contains(&lower) || r.backend == lower
        }
    };
    found.retain(|f| matches(&f.report));
    if found.is_empty() {
        return Err(Error::DeviceNotFound { wanted: wanted.to_string(), available });
    }
    Ok(found)
}

/// No adapter at all.
pub(super) fn none() -> Error {
    Error::NoAdapter { help: help().to_string() }
}

/// How to get an adapter on this system.
fn help() -> &'static str {
    if cfg!(target_os = "linux") {
        "install the GPU's Vulkan driver, or the software one: apt-get install libvulkan1 mesa-vulkan-drivers \
         (Fedora: vulkan-loader mesa-vulkan-drivers; Arch: vulkan-icd-loader vulkan-swrast)"
    } else if cfg!(target_os = "windows") {
        "install or update the GPU's driver, which brings DirectX 12 and Vulkan"
    } else {
        "this system needs Metal or a Vulkan driver"
    }
}
