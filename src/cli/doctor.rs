//! `wgllama doctor`: a report on an adapter, fit for a bug tracker.

use std::io::Write;
use std::time::Instant;

use wgllama::generate::doctor::{Diagnosis, examine};
use wgllama::{Context, Error};

use super::options::{DeviceArgs, progress_bar};
use super::{Outcome, devices};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Outcome {
    let context = args.device.open_unchecked()?;
    let start = Instant::now();
    let bar = progress_bar("comparing {wide_bar} {pos}/{len} {msg}");
    let hear = |what: &str, done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        bar.set_message(what.to_string());
    };
    let diagnosis = examine(&context, &hear);
    bar.finish_and_clear();
    report(&context, &diagnosis, start.elapsed().as_secs_f64())?;
    match diagnosis.failures().count() {
        0 => Ok(()),
        failed => {
            let message = format!("{failed} of {} comparisons failed", diagnosis.examined.len());
            Err(Error::Gpu { message }.into())
        }
    }
}

fn report(context: &Context, diagnosis: &Diagnosis, seconds: f64) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    writeln!(out, "wgllama {} on {os} {arch}\n", env!("CARGO_PKG_VERSION"))?;
    devices::describe(&mut out, context.adapter())?;
    writeln!(out, "\n| kernel | variants | results | values | largest error, of what is allowed |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    for (kernel, found) in &diagnosis.findings.0 {
        let (variants, worst) = (found.variants.len(), 100.0 * found.worst);
        writeln!(out, "| {kernel} | {variants} | {} | {} | {worst:.1} % |", found.results, found.values)?;
    }
    let untouched = diagnosis.untouched();
    if !untouched.is_empty() {
        writeln!(out, "\nnot used on this adapter: {}", untouched.join(", "))?;
    }
    for (what, error) in diagnosis.failures() {
        writeln!(out, "\nFAILED: {what}: {error}")?;
    }
    let (all, failed) = (diagnosis.examined.len(), diagnosis.failures().count());
    let longest = 1000.0 * context.submits().longest;
    writeln!(
        out,
        "\n{} of {all} models right, in {seconds:.0} s; longest submit {longest:.0} ms",
        all - failed
    )
}
