//! What an adapter can do, as plain data: kernels are chosen from this and nothing else,
//! so that every choice can be tested on a machine with no adapter.

use std::fmt;

/// Kind of adapter, in the order in which one is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdapterKind {
    /// A card with its own memory.
    Discrete,
    /// Shares the CPU's memory.
    Integrated,
    /// Passed through by a hypervisor.
    Virtual,
    /// A software adapter.
    Cpu,
    /// The driver does not say.
    Other,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Cpu => "cpu",
            Self::Other => "other",
        })
    }
}

/// Limits and features of an adapter that matter to kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Kind of adapter.
    pub kind: AdapterKind,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Largest storage binding, in bytes.
    pub max_storage_binding: u64,
    /// Largest uniform binding, in bytes.
    pub max_uniform_binding: u64,
    /// Storage buffers that one kernel may bind.
    pub max_storage_buffers: u32,
    /// Workgroup memory, in bytes.
    pub max_workgroup_memory: u32,
    /// Invocations in one workgroup.
    pub max_invocations: u32,
    /// Workgroups along one dimension of a dispatch.
    pub max_groups: u32,
    /// Smallest and largest subgroup size, where subgroup operations exist.
    pub subgroup: Option<(u32, u32)>,
    /// Whether shaders may use f16 values.
    pub shader_f16: bool,
    /// Side of the square matrices that a subgroup multiplies at once, f16 with sums in f32,
    /// where it can.
    pub coop: Option<u32>,
    /// Whether passes can be timed on the device.
    pub timestamps: bool,
}

impl Caps {
    /// WebGPU's guaranteed minimum: every kernel has a variant that runs here.
    pub const fn baseline() -> Self {
        Self {
            kind: AdapterKind::Other,
            max_buffer: 256 << 20,
            max_storage_binding: 128 << 20,
            max_uniform_binding: 64 << 10,
            max_storage_buffers: 8,
            max_workgroup_memory: 16 << 10,
            max_invocations: 256,
            max_groups: 65_535,
            subgroup: None,
            shader_f16: false,
            coop: None,
            timestamps: false,
        }
    }

    /// Mesa's software Vulkan adapter, release 25.
    pub const fn lavapipe() -> Self {
        Self {
            kind: AdapterKind::Cpu,
            max_buffer: (1 << 31) - 1,
            max_storage_buffers: 48,
            max_workgroup_memory: 32 << 10,
            max_invocations: 1024,
            subgroup: Some((8, 8)),
            shader_f16: true,
            timestamps: true,
            ..Self::baseline()
        }
    }

    const fn gpu(kind: AdapterKind, subgroup: (u32, u32), workgroup_memory: u32) -> Self {
        Self {
            kind,
            max_buffer: (1 << 31) - 1,
            max_storage_binding: (1 << 31) - 4,
            max_uniform_binding: 64 << 10,
            max_storage_buffers: 16,
            max_workgroup_memory: workgroup_memory,
            max_invocations: 1024,
            max_groups: 65_535,
            subgroup: Some(subgroup),
            shader_f16: true,
            coop: None,
            timestamps: true,
        }
    }

    /// A discrete NVIDIA card.
    pub const fn nvidia() -> Self {
        Self { coop: Some(16), ..Self::gpu(AdapterKind::Discrete, (32, 32), 48 << 10) }
    }

    /// A discrete AMD card of the third RDNA generation.
    pub const fn amd() -> Self {
        Self { coop: Some(16), ..Self::gpu(AdapterKind::Discrete, (32, 64), 64 << 10) }
    }

    /// An Intel GPU.
    pub const fn intel() -> Self {
        Self::gpu(AdapterKind::Integrated, (8, 32), 64 << 10)
    }

    /// An Apple GPU; Metal does not report one subgroup size.
    pub const fn apple() -> Self {
        Self { coop: Some(8), ..Self::gpu(AdapterKind::Integrated, (4, 64), 32 << 10) }
    }

    /// All presets with their names.
    pub fn presets() -> [(&'static str, Self); 6] {
        [
            ("baseline", Self::baseline()),
            ("lavapipe", Self::lavapipe()),
            ("nvidia", Self::nvidia()),
            ("amd", Self::amd()),
            ("intel", Self::intel()),
            ("apple", Self::apple()),
        ]
    }
}
