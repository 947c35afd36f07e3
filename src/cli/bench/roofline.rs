//! `bench --plot`: each kernel of a step below the adapter's roofline (Williams et al. 2009):
//! what it computes per second over what it computes per byte that it must move.

use std::path::Path;

use plotters::prelude::*;
use wgllama::{Error, Result};

use super::report::Report;

const WIDTH: u32 = 1200;
const LEAST_HEIGHT: u32 = 720;
const LEGEND: u32 = 420;

/// Writes the drawing.
pub fn draw(path: &Path, report: &Report) -> Result<()> {
    let mut svg = String::new();
    plot(&mut svg, report).map_err(|e| Error::option("plot", e.to_string()))?;
    std::fs::write(path, svg).map_err(|e| Error::io(path, e))
}

/// A kernel's place: operations per byte, and operations per second in 10^9.
struct Point {
    at: (f64, f64),
    label: String,
}

fn points(report: &Report) -> Vec<(&str, Vec<Point>)> {
    let of = |row: &super::Row| {
        let step: f64 = row.kernels.iter().map(|k| k.seconds).sum();
        let computing = row.kernels.iter().filter(|k| k.traffic.flops > 0.0);
        let point = |k: &super::kernels::Kernel| Point {
            at: (k.traffic.flops / k.traffic.bytes(), k.traffic.flops / k.seconds / 1e9),
            label: format!(
                "{} {}: {:.1} % of the step, {:.0} % of its roof",
                k.stem,
                k.node,
                100.0 * k.seconds / step,
                100.0 * k.share_of_roof(report.ceilings)
            ),
        };
        computing.map(point).collect()
    };
    report.rows.iter().map(|row| (row.test.as_str(), of(row))).collect()
}

fn plot(svg: &mut String, report: &Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let tests = points(report);
    let (copy, fma) = (report.ceilings.copy / 1e9, report.ceilings.flops / 1e9);
    let ridge = fma / copy;
    // Room around everything that is drawn.
    let all = || tests.iter().flat_map(|(_, points)| points).map(|p| p.at);
    let left = all().map(|p| p.0).fold(ridge, f64::min) / 3.0;
    let right = all().map(|p| p.0).fold(ridge, f64::max) * 3.0;
    let low = all().map(|p| p.1).fold(fma, f64::min) / 3.0;

    let lines: usize = tests.iter().map(|(_, points)| 2 + points.len()).sum();
    let height = LEAST_HEIGHT.max(14 * lines as u32 + 40);
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left_side, legend) = root.split_horizontally(WIDTH - LEGEND);
    let title = format!("{} on {}", report.model, report.adapter.name);
    let mut chart = ChartBuilder::on(&left_side)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((left..right).log_scale(), (low..fma * 3.0).log_scale())?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("operations per byte").y_desc("GFLOP/s").draw()?;
    // Only a bent line: straight ones stay straight where both axes are logarithmic.
    let start = left.max(low / copy);
    let roof = [(start, copy * start), (ridge, fma), (right, fma)];
    chart.draw_series(LineSeries::new(roof, BLACK.stroke_width(2)))?;
    let text = ("sans-serif", 12).into_font();
    let label = |at: (f64, f64), text_: String| Text::new(text_, at, text.clone());
    chart.draw_series([
        label((start, copy * start * 3.0), format!("copy {copy:.1} GB/s")),
        label((ridge, fma * 1.5), format!("multiply-adds {fma:.1} GFLOP/s")),
    ])?;

    let (mut line, mut number) = (24, 0);
    for (i, (test, points)) in tests.iter().enumerate() {
        // Steps of the golden ratio keep neighbours apart; dark enough to read.
        let color = HSLColor((i as f64 * 0.618).fract(), 0.8, 0.38).to_rgba();
        legend.draw(&Text::new(test.to_string(), (8, line), text.clone().color(&color)))?;
        line += 16;
        for point in points {
            number += 1;
            chart.draw_series([Circle::new(point.at, 4, color.filled())])?;
            let beside = EmptyElement::at(point.at) + Text::new(number.to_string(), (6, -6), text.clone());
            chart.draw_series([beside])?;
            legend.draw(&Text::new(format!("{number}  {}", point.label), (16, line), text.clone()))?;
            line += 14;
        }
        line += 10;
    }
    root.present()?;
    Ok(())
}
