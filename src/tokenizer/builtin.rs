//! Chat templates by name, for models that bring none.

/// A template's name, and its text.
type Named = (&'static str, &'static str);

macro_rules! template {
    ($name:literal) => {
        ($name, include_str!(concat!("templates/", $name, ".jinja")))
    };
}

/// All templates that are built in.
pub const TEMPLATES: [Named; 19] = [
    template!("alpaca"),
    template!("chatml"),
    template!("command-r"),
    template!("deepseek"),
    template!("deepseek-coder"),
    template!("exaone"),
    template!("falcon3"),
    template!("gemma"),
    template!("granite"),
    template!("llama2"),
    template!("llama3"),
    template!("mistral-v1"),
    template!("mistral-v3"),
    template!("mistral-v3-tekken"),
    template!("olmo2"),
    template!("openchat"),
    template!("phi3"),
    template!("vicuna"),
    template!("zephyr"),
];

/// Other names: of models that have the template of another.
const ALIASES: [(&str, &str); 3] = [("qwen", "chatml"), ("smollm", "chatml"), ("llama3.1", "llama3")];

/// The template called `name`. Mistral's changed when its brackets became tokens, as `is_token` knows.
pub fn template(name: &str, is_token: impl Fn(&str) -> bool) -> Option<&'static str> {
    let own = match name {
        "mistral" if is_token("[INST]") => "mistral-v3",
        "mistral" => "mistral-v1",
        other => ALIASES.iter().find(|(alias, _)| *alias == other).map_or(other, |(_, own)| own),
    };
    TEMPLATES.iter().find(|(name, _)| *name == own).map(|(_, text)| *text)
}

/// All names, for messages.
pub fn names() -> String {
    let aliases = ALIASES.iter().map(|(alias, _)| *alias).chain(["mistral"]);
    let mut all: Vec<_> = TEMPLATES.iter().map(|(name, _)| *name).chain(aliases).collect();
    all.sort_unstable();
    all.join(", ")
}
