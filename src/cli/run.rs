//! `wgllama run`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use wgllama::{
    ChatOptions, Error, Finish, Message, Model, ModelFiles, Result, Sampling, Session, SessionOptions,
    Specials,
};

use super::options::{CacheArgs, DeviceArgs, LoadArgs, default_model, is_model, prompt};
use super::{Outcome, Stop, tell};

#[derive(clap::Args)]
#[command(override_usage = "wgllama run [OPTIONS] [MODEL] PROMPT")]
pub struct Args {
    /// Hugging Face folder or GGUF file [default: the model of `make demo`]
    #[arg(value_name = "MODEL")]
    first: String,
    /// The text, or - for standard input
    #[arg(value_name = "PROMPT")]
    second: Option<String>,
    /// The most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Go on where the model ends its text
    #[arg(long)]
    ignore_eos: bool,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f32,
    /// Only the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Only the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Only tokens at least so likely, as a share of the likeliest; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Divides positive logits of tokens that were there, and multiplies negative ones; 1 for none
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Taken off the logits of tokens that were generated
    #[arg(long, value_name = "L", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Taken off the logits for each time that a token was generated
    #[arg(long, value_name = "L", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the choices [default: another one every time]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Give the prompt to the model as it stands, without its chat template
    #[arg(long)]
    raw: bool,
    /// What the system message says, in front of the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// A chat template instead of the model's: the name of one that is built in (llama2, chatml, mistral,
    /// gemma, phi3, llama3, zephyr, ...) or a file in Jinja
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "raw")]
    chat_template: Option<String>,
    /// A JSON file with the list of tools that the template is to offer
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    tools: Option<PathBuf>,
    /// Special tokens written in a prompt without template become their ids instead of staying text
    #[arg(long)]
    special: bool,
    /// Steps that the device may be ahead of the text
    #[arg(long, value_name = "STEPS", default_value_t = 2)]
    ahead: usize,
    /// Compare the results of every launch with the CPU, and end at the first that differs; a hundred times
    /// slower
    #[arg(long)]
    check: bool,
    /// Print one JSON object with text, ids and figures instead of streaming
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What a run measured, in seconds and tokens.
struct Figures {
    load: f64,
    prompt: f64,
    generation: f64,
    prompt_tokens: usize,
    ids: Vec<u32>,
    finish: Option<Finish>,
    text: String,
    cache_bytes: u64,
}

pub fn run(args: &Args) -> Outcome {
    let (path, text) = match &args.second {
        Some(text) => (args.first.clone().into(), text),
        None if is_model(&args.first) => {
            let message = format!("expected MODEL and PROMPT, found only the model {}", args.first);
            return Err(Error::InvalidOption { name: "PROMPT".to_string(), message }.into());
        }
        None => (default_model()?, &args.first),
    };
    let text = prompt(text)?;
    let files = args.load.open(Path::new(&path))?;
    let ids = encode(args, &files, &text)?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        seed: args.seed.unwrap_or_else(fresh_seed),
        max_tokens: args.max_tokens,
        ignore_eos: args.ignore_eos,
    };
    let options = SessionOptions { ahead: Some(args.ahead), check: args.check, ..args.cache.session()? };
    // What can be known to be wrong is said before anything is loaded.
    sampling.check()?;
    let room = options.context_for(files.config())?;
    if ids.len() > room {
        return Err(Error::PromptTooLong { len: ids.len(), room }.into());
    }
    let context = args.device.open()?;
    let (model, load) = args.load.load(&context, &files)?;
    let mut session = model.session(&options)?;
    session.prepare()?;
    let figures = generate(args, &mut session, &ids, &sampling, load)?;
    report(args, &model, &figures, sampling.seed)?;
    if let (true, (values, Some((kernel, worst)))) = (args.check, session.findings().summary()) {
        tell(format_args!(
            "every launch equals the CPU: {values} values compared; the largest error, of {kernel}, is {:.0} % of \
             what is allowed",
            100.0 * worst
        ));
    }
    Ok(())
}

fn encode(args: &Args, files: &ModelFiles, text: &str) -> Result<Vec<u32>> {
    let mut tokenizer = files.tokenizer()?;
    if let Some(template) = &args.chat_template {
        tokenizer = match template.ends_with(".jinja") || template.contains(std::path::is_separator) {
            true => tokenizer.with_template(&read(Path::new(template))?),
            false => tokenizer.with_built_in_template(template)?,
        };
    }
    if args.raw || !tokenizer.has_chat_template() {
        if args.system.is_some() || args.tools.is_some() {
            let message = "the model brings no chat template: name one (--chat-template)";
            return Err(Error::ChatTemplate { message: message.to_string() });
        }
        let specials = if args.special { Specials::Parse } else { Specials::Text };
        return tokenizer.encode_prompt(text, specials);
    }
    let system = args.system.iter().map(|system| Message::new("system", system));
    let messages: Vec<_> = system.chain([Message::new("user", text)]).collect();
    let tools = match &args.tools {
        None => Vec::new(),
        Some(path) => serde_json::from_str(&read(path)?).map_err(|e| {
            let message = format!("{}: expected a JSON list of tools: {e}", path.display());
            Error::InvalidOption { name: "tools".to_string(), message }
        })?,
    };
    tokenizer.encode_chat_with(&messages, &ChatOptions { tools, ..ChatOptions::default() })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

/// A seed that nobody chose: the time.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_nanos() as u64 & 0xffff_ffff)
}

fn generate(
    args: &Args,
    session: &mut Session,
    ids: &[u32],
    sampling: &Sampling,
    load: f64,
) -> Result<Figures, Stop> {
    let mut out = std::io::stdout().lock();
    let cache_bytes = session.cache_bytes();
    let start = Instant::now();
    let mut stream = session.generate_ids(ids, sampling)?;
    // The prompt is read when its first token is there.
    let mut first = stream.next();
    let prompt = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut figures = Figures {
        load,
        prompt,
        generation: 0.0,
        prompt_tokens: ids.len(),
        ids: Vec::new(),
        finish: None,
        text: String::new(),
        cache_bytes,
    };
    while let Some(piece) = first.take().or_else(|| stream.next()) {
        let piece = piece?;
        figures.ids.extend(piece.id);
        if args.json {
            figures.text.push_str(&piece.text);
        } else {
            write!(out, "{}", piece.text)?;
            out.flush()?;
        }
    }
    figures.finish = stream.finish();
    figures.generation = start.elapsed().as_secs_f64();
    if !args.json {
        writeln!(out)?;
    }
    Ok(figures)
}

fn report(args: &Args, model: &Model, figures: &Figures, seed: u64) -> Outcome {
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let adapter = model.context().adapter();
    let generated = figures.ids.len();
    // The first token comes with the prompt; the rest took the time that generation took.
    let prompt_rate = rate(figures.prompt_tokens, figures.prompt);
    let generation_rate = rate(generated.saturating_sub(1), figures.generation);
    let finish = match figures.finish {
        Some(Finish::End) | None => "end",
        Some(Finish::Length) => "length",
        Some(Finish::Context) => "context",
    };
    if args.json {
        let object = json!({
            "text": figures.text,
            "ids": figures.ids,
            "finish": finish,
            "seed": seed,
            "prompt_tokens": figures.prompt_tokens,
            "adapter": adapter.name,
            "backend": adapter.backend,
            "load_seconds": figures.load,
            "prompt_seconds": figures.prompt,
            "prompt_tokens_per_second": prompt_rate,
            "generation_seconds": figures.generation,
            "generation_tokens_per_second": generation_rate,
            "weight_bytes": model.weights().bytes(),
            "cache_bytes": figures.cache_bytes,
            "peak_host_bytes": wgllama::host::peak_memory(),
        });
        writeln!(std::io::stdout(), "{object}")?;
        return Ok(());
    }
    tell(format_args!(
        "\n{} ({}), loaded in {:.2} s\nprompt {} tokens, {prompt_rate:.1} tok/s; \
         generated {generated} tokens, {generation_rate:.1} tok/s ({finish})",
        adapter.name, adapter.backend, figures.load, figures.prompt_tokens
    ));
    Ok(())
}
