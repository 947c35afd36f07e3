#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    wgllama_fuzz::run("folder", data);
});
