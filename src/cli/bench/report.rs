//! What `bench` prints: tables for people, or the same as CSV and JSON.

use std::io::Write;

use serde_json::{Value, json};
use wgllama::gpu::AdapterReport;

use super::kernels::Kernel;
use super::measure::Row;
use crate::cli::Outcome;
use crate::cli::ceilings::Ceilings;

/// All that was measured, and of what.
pub struct Report {
    pub model: String,
    pub adapter: AdapterReport,
    /// Layers that the rows are about.
    pub layers: usize,
    /// Layers that were run, where they are fewer.
    pub scaled_from: Option<usize>,
    pub ceilings: Ceilings,
    pub rows: Vec<Row>,
}

impl Report {
    /// Prints in `format`: md, csv, json or jsonl.
    pub fn print(&self, format: &str) -> Outcome {
        let mut out = std::io::stdout().lock();
        match format {
            "json" => writeln!(out, "{}", Value::Array(self.rows.iter().map(|r| self.object(r)).collect()))?,
            "jsonl" => self.rows.iter().try_for_each(|row| writeln!(out, "{}", self.object(row)))?,
            "csv" => self.csv(&mut out)?,
            _ => self.tables(&mut out)?,
        }
        Ok(())
    }

    fn object(&self, row: &Row) -> Value {
        let (rate, deviation) = row.rate();
        let mut object = json!({
            "model": self.model,
            "adapter": self.adapter.name,
            "driver": self.adapter.driver,
            "backend": self.adapter.backend,
            "layers": self.layers,
            "scaled_from_layers": self.scaled_from,
            "test": row.test,
            "sequences": row.sequences,
            "tokens_per_second": rate,
            "deviation": deviation,
            "bytes_per_second": row.bytes_per_second(),
            "share_of_copy": row.bytes_per_second() / self.ceilings.copy,
            "flops": row.flops_per_second(),
            "share_of_fma": row.flops_per_second() / self.ceilings.flops,
            "launches_per_token": row.launches,
            "encode_seconds_per_token": row.encode,
            "first_token_seconds": row.first,
            "copy_bytes_per_second": self.ceilings.copy,
            "fma_flops": self.ceilings.flops,
            "device_bytes": row.device_bytes,
            "peak_host_bytes": row.host_bytes,
        });
        if !row.kernels.is_empty() {
            object["profile"] = row.kernels.iter().map(|k| self.kernel(row, k)).collect();
        }
        object
    }

    fn kernel(&self, row: &Row, kernel: &Kernel) -> Value {
        json!({
            "kernel": kernel.variant,
            "node": kernel.node,
            "launches": kernel.launches,
            "seconds": kernel.seconds,
            "share_of_step": kernel.seconds / step_seconds(row),
            "bytes": kernel.traffic.bytes(),
            "flops": kernel.traffic.flops,
            "share_of_roof": kernel.share_of_roof(self.ceilings),
            "bound": if kernel.memory_bound(self.ceilings) { "copy" } else { "fma" },
        })
    }

    fn csv(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "test,sequences,tokens_per_second,deviation,gb_per_second,share_of_copy,gflops,share_of_fma,\
             launches_per_token,encode_us_per_token,first_token_ms,peak_host_bytes,device_bytes,\
             layers,scaled_from_layers"
        )?;
        let maybe = |value: Option<String>| value.unwrap_or_default();
        for row in &self.rows {
            let (rate, deviation) = row.rate();
            writeln!(
                out,
                "{},{},{rate:.3},{deviation:.3},{:.3},{:.4},{:.3},{:.4},{:.3},{:.2},{:.3},{},{:.0},{},{}",
                row.test,
                row.sequences,
                row.bytes_per_second() / 1e9,
                row.bytes_per_second() / self.ceilings.copy,
                row.flops_per_second() / 1e9,
                row.flops_per_second() / self.ceilings.flops,
                row.launches,
                row.encode * 1e6,
                row.first * 1e3,
                maybe(row.host_bytes.map(|b| b.to_string())),
                row.device_bytes,
                self.layers,
                maybe(self.scaled_from.map(|n| n.to_string())),
            )?;
        }
        if self.rows.iter().all(|row| row.kernels.is_empty()) {
            return Ok(());
        }
        writeln!(
            out,
            "\ntest,kernel,node,launches,ms,share_of_step,gb_per_second,gflops,share_of_roof,bound"
        )?;
        for row in &self.rows {
            for kernel in &row.kernels {
                writeln!(
                    out,
                    "{},\"{}\",{},{},{:.4},{:.4},{:.3},{:.3},{:.4},{}",
                    row.test,
                    kernel.variant,
                    kernel.node,
                    kernel.launches,
                    kernel.seconds * 1e3,
                    kernel.seconds / step_seconds(row),
                    kernel.traffic.bytes() / kernel.seconds / 1e9,
                    kernel.traffic.flops / kernel.seconds / 1e9,
                    kernel.share_of_roof(self.ceilings),
                    if kernel.memory_bound(self.ceilings) { "copy" } else { "fma" },
                )?;
            }
        }
        Ok(())
    }

    fn tables(&self, out: &mut impl Write) -> std::io::Result<()> {
        let AdapterReport { name, backend, driver, .. } = &self.adapter;
        let layers = match self.scaled_from {
            Some(run) => format!("scaled from {run} of {} layers", self.layers),
            None => format!("{} layers", self.layers),
        };
        writeln!(out, "{}, {layers}, on {name} ({backend}, {driver})", self.model)?;
        writeln!(
            out,
            "ceilings: copy {:.1} GB/s, multiply-adds {:.1} GFLOP/s\n",
            self.ceilings.copy / 1e9,
            self.ceilings.flops / 1e9,
        )?;
        writeln!(out, "| test | tok/s | GB/s | of copy | GFLOP/s | of multiply-adds |")?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let (rate, deviation) = row.rate();
            writeln!(
                out,
                "| {} | {rate:.2} ± {deviation:.2} | {:.2} | {:.0} % | {:.2} | {:.0} % |",
                row.test,
                row.bytes_per_second() / 1e9,
                100.0 * row.bytes_per_second() / self.ceilings.copy,
                row.flops_per_second() / 1e9,
                100.0 * row.flops_per_second() / self.ceilings.flops,
            )?;
        }
        writeln!(
            out,
            "\n| test | launches a token | encoding a token | first token | host memory | on the device |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let host = row.host_bytes.map_or("unknown".to_string(), |b| format!("{:.0} MB", b as f64 / 1e6));
            writeln!(
                out,
                "| {} | {:.1} | {:.1} us | {:.1} ms | {host} | {:.0} MB |",
                row.test,
                row.launches,
                row.encode * 1e6,
                row.first * 1e3,
                row.device_bytes / 1e6,
            )?;
        }
        for row in self.rows.iter().filter(|row| !row.kernels.is_empty()) {
            self.profile(out, row)?;
        }
        Ok(())
    }

    fn profile(&self, out: &mut impl Write, row: &Row) -> std::io::Result<()> {
        let launches: usize = row.kernels.iter().map(|k| k.launches).sum();
        let of = self.scaled_from.map_or(String::new(), |run| format!(" of {run} layers, not scaled"));
        let step = step_seconds(row) * 1e3;
        writeln!(out, "\na step of {}{of}: {step:.3} ms in {launches} launches\n", row.test)?;
        writeln!(out, "| kernel | node | launches | ms | share | GB/s | GFLOP/s | of its roof |")?;
        writeln!(out, "|---|---|---|---|---|---|---|---|")?;
        for kernel in &row.kernels {
            writeln!(
                out,
                "| {} | {} | {} | {:.3} | {:.1} % | {:.2} | {:.2} | {:.0} % of {} |",
                kernel.variant,
                kernel.node,
                kernel.launches,
                kernel.seconds * 1e3,
                100.0 * kernel.seconds / step_seconds(row),
                kernel.traffic.bytes() / kernel.seconds / 1e9,
                kernel.traffic.flops / kernel.seconds / 1e9,
                100.0 * kernel.share_of_roof(self.ceilings),
                if kernel.memory_bound(self.ceilings) { "copy" } else { "multiply-adds" },
            )?;
        }
        Ok(())
    }
}

/// Seconds of all launches of the step that was profiled.
fn step_seconds(row: &Row) -> f64 {
    row.kernels.iter().map(|k| k.seconds).sum()
}
