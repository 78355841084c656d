//! A plot of an axis: cycles a second to the left, latencies to the right.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Point;
use crate::axis::Axis;

const SIZE: (u32, u32) = (1000, 380);
const FONT: (&str, u32) = ("sans-serif", 14);
const TITLE: (&str, u32) = ("sans-serif", 17);
const BLUE_LINE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const RED_LINE: RGBColor = RGBColor(0xb3, 0x3a, 0x3a);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line: its name, its colour, its height at each place.
type Line<'a> = (&'a str, RGBColor, Vec<f64>);

pub fn draw(path: &Path, axis: Axis, points: &[Point]) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("drawing {}: {error}", path.display());
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let (left, right) = area.split_horizontally(SIZE.0 / 2);
    let of = |figure: fn(&Point) -> f64| points.iter().map(figure).collect::<Vec<_>>();
    let cycles = [("cycles/s", BLUE_LINE, of(|point| point.cycles_per_s))];
    panel(&left, axis, points, "cycles a second, as fast as it goes", &cycles)?;
    let latencies = [("p50", BLUE_LINE, of(|point| point.p50_ms)), ("p99", RED_LINE, of(|point| point.p99_ms))];
    let rate = points.iter().map(|point| point.rate).max().unwrap_or(0);
    panel(&right, axis, points, &format!("ms from due to delivered, at up to {rate} a second"), &latencies)?;
    area.present().map_err(|error| failed(&error))
}

fn panel(area: &Area<'_>, axis: Axis, points: &[Point], title: &str, lines: &[Line<'_>]) -> Result<()> {
    let highest = lines.iter().flat_map(|(.., heights)| heights).copied().fold(0.0, f64::max);
    let last = points.len().saturating_sub(1) as f64;
    // Places stand at even distances: most axes are logarithmic and begin at nought.
    let mut chart = ChartBuilder::on(area)
        .caption(title, TITLE)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(-0.2..last + 0.2, 0.0..highest * 1.15)?;
    let place = |x: &f64| {
        let near = (x - x.round()).abs() < 0.01;
        points.get(x.round() as usize).filter(|_| near).map_or(String::new(), |point| axis.label(point.at))
    };
    let height = |y: &f64| if highest >= 100.0 { format!("{y:.0}") } else { format!("{y:.1}") };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(points.len() * 2)
        .x_label_formatter(&place)
        .y_label_formatter(&height)
        .x_desc(axis.title())
        .label_style(FONT)
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    for (name, colour, heights) in lines {
        let at: Vec<(f64, f64)> = heights.iter().enumerate().map(|(x, y)| (x as f64, *y)).collect();
        chart
            .draw_series(LineSeries::new(at.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(at.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    if lines.len() > 1 {
        chart.configure_series_labels().border_style(BLACK.mix(0.3)).background_style(WHITE).label_font(FONT).draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_places_and_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waiting.svg");
        let point = |at, p99_ms| Point { at, cycles_per_s: 90_000.0, cpu_us: 16.0, rate: 1_000, p50_ms: 0.5, p99_ms };
        draw(&path, Axis::Waiting, &[point(0, 2.0), point(10_000, 2.5), point(1_000_000, 3.0)]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for text in ["10k", "1M", "p99", "cycles a second", "packages that wait"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
