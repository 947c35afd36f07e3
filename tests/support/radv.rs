//! A real GPU compiler without the GPU: Mesa's RADV opens "null hardware" of any AMD family, where
//! pipelines compile and nothing runs. Modules are translated as wgpu does for shaders that it is
//! told to trust: SPIR-V without bounds checks, loop bounds or cleared workgroup memory.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::PathBuf;

use ash::vk;
use naga::valid::{Capabilities, SubgroupOperationSet, ValidationFlags, Validator};
use wgllama::kernels::Variant;
use wgllama::kernels::link::link;

/// The driver's manifest, where it is installed.
fn manifest() -> Option<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir("/usr/share/vulkan/icd.d")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("radeon_icd")))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// Older releases compile otherwise.
const RELEASE: u32 = 24;

/// One AMD family, as RADV's compiler knows it.
pub struct Radv {
    /// RADV's name of the family, such as `navi31`.
    pub family: &'static str,
    /// The driver and its version.
    pub driver: String,
    /// Whether it has cooperative matrices.
    pub matrices: bool,
    device: ash::Device,
    executables: ash::khr::pipeline_executable_properties::Device,
    _entry: ash::Entry,
}

/// What the compiler made of a shader.
pub struct Compiled {
    /// Invocations of a subgroup.
    pub subgroup: u32,
    /// The compiler's figures by name.
    pub figures: BTreeMap<String, u64>,
    /// The instructions.
    pub assembly: String,
}

impl Radv {
    /// Opens each of `families`; none where Mesa's RADV is missing, too old, or
    /// does not know one of them.
    ///
    /// The driver takes the family from the environment when an instance is made. Call this once in a
    /// process, before it has threads that read the environment.
    pub fn open_all(families: &[&'static str]) -> Option<Vec<Self>> {
        let manifest = manifest()?;
        // SAFETY: the caller sees to it that no thread reads the environment meanwhile.
        unsafe { std::env::set_var("VK_DRIVER_FILES", &manifest) };
        families.iter().map(|family| Self::open(family)).collect()
    }

    fn open(family: &'static str) -> Option<Self> {
        // SAFETY: as above; every Vulkan handle lives as long as the process, and all structures through
        // the calls that read them.
        unsafe {
            std::env::set_var("RADV_FORCE_FAMILY", family);
            let entry = ash::Entry::load().ok()?;
            let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let create = vk::InstanceCreateInfo::default().application_info(&app);
            let instance = entry.create_instance(&create, None).ok()?;
            let physical = instance.enumerate_physical_devices().ok()?.into_iter().next()?;

            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut properties);
            let device_name =
                properties.properties.device_name_as_c_str().ok()?.to_string_lossy().to_lowercase();
            if !device_name.contains(family) {
                return None;
            }
            let driver = driver.driver_info_as_c_str().ok()?.to_string_lossy().into_owned();
            let release = driver.strip_prefix("Mesa ")?.split('.').next()?.parse::<u32>().ok()?;
            if release < RELEASE {
                return None;
            }

            let offered = instance.enumerate_device_extension_properties(physical).ok()?;
            let has = |name: &CStr| offered.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
            let matrices = has(ash::khr::cooperative_matrix::NAME);
            let mut extensions = vec![ash::khr::pipeline_executable_properties::NAME.as_ptr()];
            extensions.extend(matrices.then_some(ash::khr::cooperative_matrix::NAME.as_ptr()));
            let queue = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
                .pipeline_executable_info(true);
            let mut cooperative =
                vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
            let mut v11 = vk::PhysicalDeviceVulkan11Features::default()
                .storage_buffer16_bit_access(true)
                .uniform_and_storage_buffer16_bit_access(true);
            let mut v12 = vk::PhysicalDeviceVulkan12Features::default()
                .shader_float16(true)
                .shader_int8(true)
                .vulkan_memory_model(true);
            let mut v13 = vk::PhysicalDeviceVulkan13Features::default()
                .shader_integer_dot_product(true)
                .subgroup_size_control(true);
            let mut create = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queue)
                .enabled_extension_names(&extensions)
                .push_next(&mut executable)
                .push_next(&mut v11)
                .push_next(&mut v12)
                .push_next(&mut v13);
            if matrices {
                create = create.push_next(&mut cooperative);
            }
            let device = instance.create_device(physical, &create, None).ok()?;
            let executables = ash::khr::pipeline_executable_properties::Device::new(&instance, &device);
            Some(Self { family, driver, matrices, device, executables, _entry: entry })
        }
    }

    /// Compiles a variant.
    pub fn compile(&self, variant: &Variant) -> Compiled {
        let (spirv, groups) = translate(variant);
        self.pipeline(&spirv, &groups).unwrap_or_else(|e| panic!("{variant} on {}: {e}", self.family))
    }

    fn pipeline(&self, spirv: &[u32], groups: &[Vec<Descriptor>]) -> Result<Compiled, vk::Result> {
        let device = &self.device;
        // SAFETY: all structures live through the calls, and what is made here is destroyed at the end; the
        // device compiles only.
        unsafe {
            let mut sets = Vec::new();
            for group in groups {
                let bindings: Vec<_> = group
                    .iter()
                    .map(|(binding, kind)| {
                        vk::DescriptorSetLayoutBinding::default()
                            .binding(*binding)
                            .descriptor_count(1)
                            .stage_flags(vk::ShaderStageFlags::COMPUTE)
                            .descriptor_type(*kind)
                    })
                    .collect();
                let create = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
                sets.push(device.create_descriptor_set_layout(&create, None)?);
            }
            let layout = device
                .create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().set_layouts(&sets), None)?;
            let module =
                device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(spirv), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let create = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(
                vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                    | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
            );
            let pipeline = device
                .create_compute_pipelines(vk::PipelineCache::null(), &[create], None)
                .map_err(|e| e.1)?[0];
            let compiled = self.describe(pipeline);
            device.destroy_pipeline(pipeline, None);
            device.destroy_shader_module(module, None);
            device.destroy_pipeline_layout(layout, None);
            sets.into_iter().for_each(|set| device.destroy_descriptor_set_layout(set, None));
            compiled
        }
    }

    /// # Safety
    ///
    /// `pipeline` is one of this device's.
    unsafe fn describe(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
        let executable = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: the second call of the last function fills the memory that the first one asked for.
        unsafe {
            let properties = self.executables.get_pipeline_executable_properties(&of)?;
            let figures = self.executables.get_pipeline_executable_statistics(&executable)?;
            let figures = figures
                .iter()
                .map(|f| (CStr::from_ptr(f.name.as_ptr()).to_string_lossy().into_owned(), f.value.u64))
                .collect();
            let mut texts = self.executables.get_pipeline_executable_internal_representations(&executable)?;
            let mut bytes: Vec<Vec<u8>> = texts.iter().map(|text| vec![0; text.data_size]).collect();
            for (text, bytes) in texts.iter_mut().zip(&mut bytes) {
                text.p_data = bytes.as_mut_ptr().cast();
            }
            let mut count = texts.len() as u32;
            (self.executables.fp().get_pipeline_executable_internal_representations_khr)(
                self.device.handle(),
                &executable,
                &mut count,
                texts.as_mut_ptr(),
            )
            .result()?;
            let assembly = texts
                .iter()
                .zip(&bytes)
                .filter(|(text, _)| CStr::from_ptr(text.name.as_ptr()).to_string_lossy().contains("Assembly"))
                .map(|(_, bytes)| String::from_utf8_lossy(bytes).replace('\0', ""))
                .collect();
            Ok(Compiled { subgroup: properties[0].subgroup_size, figures, assembly })
        }
    }
}

/// Number and kind of a binding.
type Descriptor = (u32, vk::DescriptorType);

/// SPIR-V of a variant, and the bindings of each of its groups.
fn translate(variant: &Variant) -> (Vec<u32>, Vec<Vec<Descriptor>>) {
    let source = link(variant).source;
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities: Capabilities::all() };
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|e| panic!("{variant}: {}", e.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .subgroup_stages(naga::valid::ShaderStages::all())
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{variant}: {}", e.emit_to_string(&source)));
    let unchecked = naga::proc::BoundsCheckPolicy::Unchecked;
    let options = naga::back::spv::Options {
        lang_version: (1, 6),
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        force_loop_bounding: false,
        zero_initialize_workgroup_memory: naga::back::spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..Default::default()
    };
    let entry = naga::back::spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: "main".to_string(),
    };
    let spirv = naga::back::spv::write_vec(&module, &info, &options, Some(&entry))
        .unwrap_or_else(|e| panic!("{variant}: {e}"));
    let mut groups = vec![Vec::new(); 2];
    for (_, variable) in module.global_variables.iter() {
        if let Some(binding) = &variable.binding {
            let kind = match variable.space {
                naga::AddressSpace::Uniform => vk::DescriptorType::UNIFORM_BUFFER,
                _ => vk::DescriptorType::STORAGE_BUFFER,
            };
            groups[binding.group as usize].push((binding.binding, kind));
        }
    }
    (spirv, groups)
}
