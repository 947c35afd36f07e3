//! Compiled kernels, one for each variant, shared by all executables of a context.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::context::{Context, lock};
use crate::gpu::disk::DiskCache;
use crate::gpu::pace::Speed;
use crate::kernels::link::{Linked, link};
use crate::kernels::{Access, Variant};
use crate::native;

/// A compiled kernel and the layout of its group 0.
pub struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub speed: Speed,
}

/// The cache.
pub struct Pipelines {
    compiled: Mutex<HashMap<Variant, Arc<Pipeline>>>,
    step_layout: wgpu::BindGroupLayout,
    checked: bool,
    disk: Option<DiskCache>,
}

impl Pipelines {
    pub fn new(device: &wgpu::Device, checked: bool, disk: Option<DiskCache>) -> Self {
        let step_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("step"),
            entries: &[entry(0, Access::Read)],
        });
        Self { compiled: Mutex::new(HashMap::new()), step_layout, checked, disk }
    }
}

fn entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
        Access::Uniform => wgpu::BufferBindingType::Uniform,
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

/// The compiler's message with the file of the first line that it names.
fn located(message: &str, linked: &Linked) -> String {
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    let line = message.split("wgsl:").skip(1).find_map(|rest| digits(rest).parse().ok());
    line.map_or_else(|| message.to_string(), |line| format!("at {}: {message}", linked.locate(line)))
}

impl Context {
    /// The layout of group 1, which every kernel shares: the step.
    pub(super) fn step_layout(&self) -> &wgpu::BindGroupLayout {
        &self.pipelines().step_layout
    }

    /// The pipelines of `variants`, compiling those that are new.
    pub(super) fn compile(&self, variants: &[Variant]) -> Result<()> {
        let cache = &self.pipelines().compiled;
        let mut missing: Vec<Variant> = Vec::new();
        for variant in variants {
            if !lock(cache).contains_key(variant) && !missing.contains(variant) {
                missing.push(*variant);
            }
        }
        for (variant, pipeline) in native::parallel(&missing, |v| self.compile_one(v)) {
            lock(cache).insert(variant, Arc::new(pipeline?));
        }
        if let Some(disk) = self.pipelines().disk.as_ref().filter(|_| !missing.is_empty()) {
            disk.save();
        }
        Ok(())
    }

    /// The compiled pipeline of `variant`.
    pub(super) fn pipeline(&self, variant: &Variant) -> Result<Arc<Pipeline>> {
        self.compile(std::slice::from_ref(variant))?;
        lock(&self.pipelines().compiled).get(variant).cloned().ok_or_else(|| Error::Pipeline {
            variant: variant.to_string(),
            message: "it was not compiled".to_string(),
        })
    }

    fn compile_one(&self, variant: &Variant) -> Result<Pipeline> {
        let fail = |message: String| Error::Pipeline { variant: variant.to_string(), message };
        let decl = variant.kernel();
        let mut linked = link(variant);
        let label = variant.to_string();
        if let Some(source) = self.options().faults.source(&label) {
            linked.source = source.to_string();
        }
        let device = self.device();
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);

        let mut entries: Vec<_> =
            decl.bindings.iter().enumerate().map(|(i, b)| entry(i as u32, variant.access(b))).collect();
        entries.push(entry(decl.bindings.len() as u32, Access::Uniform));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&label),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout), Some(self.step_layout())],
            immediate_size: 0,
        });
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(std::mem::take(&mut linked.source).into()),
        };
        let module = if decl.is_ours() && !self.pipelines().checked {
            self.trusted_module(descriptor)
        } else {
            device.create_shader_module(descriptor)
        };
        let raw = self.creator().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Kernels write what they read there.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.pipelines().disk.as_ref().map(|d| &d.raw),
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(fail(located(&error.to_string(), &linked)));
        }
        self.check()?;
        log::debug!("compiled {variant}");
        Ok(Pipeline { raw, layout, speed: Speed::default() })
    }

    #[expect(unsafe_code, reason = "run-time checks cost up to 100 times in loops over private arrays")]
    fn trusted_module(&self, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
        // SAFETY: the source is one of our own shaders, never a user's. Its loops end, and its
        // indices stay inside the buffers that the plan sized for it, for every batch that
        // `Batch::check` lets through; tests run models with the checks, too, and compare.
        unsafe {
            self.device().create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }
}
