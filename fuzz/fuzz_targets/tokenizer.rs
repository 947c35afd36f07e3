#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(wgllama_fuzz::run("tokenizer", data)));
