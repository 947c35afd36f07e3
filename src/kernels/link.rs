//! Linking: header, parts and body, one after the other. WGSL's module scope does not depend
//! on order, so this is always a legal module; nothing is replaced inside a file.

use std::fmt::Write;

use crate::kernels::{Part, Variant};

/// A linked module, and which file each of its lines comes from.
#[derive(Debug, Clone)]
pub struct Linked {
    /// The whole WGSL text.
    pub source: String,
    files: Vec<(usize, String)>,
}

impl Linked {
    /// File and line of line `line` (from 1) of the linked text.
    pub fn locate(&self, line: usize) -> String {
        let (start, file) = self
            .files
            .iter()
            .rev()
            .find(|(start, _)| *start <= line)
            .map_or((1, "header"), |(start, file)| (*start, file.as_str()));
        format!("{file}:{}", line + 1 - start)
    }

    fn push(&mut self, file: &str, text: &str) {
        let line = self.source.lines().count() + 1;
        self.files.push((line, file.to_string()));
        self.source.push_str(text);
        if !text.ends_with('\n') {
            self.source.push('\n');
        }
    }
}

/// Links `variant`.
pub fn link(variant: &Variant) -> Linked {
    let decl = variant.kernel();
    // Writing to a String can't fail.
    let mut header = format!("// {variant}\n");
    for extension in variant.parts().flat_map(Part::enables) {
        let _ = writeln!(header, "enable {extension};");
    }
    for (name, value) in variant.numbers() {
        let _ = writeln!(header, "const {name}: u32 = {value}u;");
    }
    let mut linked = Linked { source: String::new(), files: Vec::new() };
    linked.push("header", &header);
    for part in variant.parts().flat_map(|part| part.needs().chain([part])) {
        let (file, text) = part.source();
        linked.push(file, text);
    }
    linked.push(&format!("{}.wgsl", decl.name), decl.source);
    linked
}
