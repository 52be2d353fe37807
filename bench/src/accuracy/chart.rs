//! The picture: errors over the size of the set.

use crate::{LOG2M, Point, WORST_BIAS, WORST_RMSE};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

/// The sketch that most have, for which the other estimator is drawn beside.
const USUAL_LOG2M: u32 = 11;

pub fn write(path: &Path, points: &[Point]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (960, 720)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(360);
    let rmse = |point: &Point| (point.ertl.rmse, point.classic.rmse);
    let bias = |point: &Point| (point.ertl.bias, point.classic.bias);
    draw(&upper, points, "root mean square of the error / theory", 0.0..2.5, &[WORST_RMSE], rmse)?;
    draw(&lower, points, "mean of the error / theory", -0.5..1.5, &[WORST_BIAS, -WORST_BIAS], bias)?;
    root.present()?;
    Ok(())
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    points: &[Point],
    caption: &str,
    range: std::ops::Range<f64>,
    goals: &[f64],
    value: fn(&Point) -> (f64, f64),
) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(50)
        .build_cartesian_2d((1f64..1e9).log_scale(), range)?;
    chart
        .configure_mesh()
        .x_desc("different values")
        .x_label_formatter(&|values| format!("{values:e}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for log2m in LOG2M {
        let of_size = points.iter().filter(move |point| point.log2m == log2m);
        let ertl = of_size.clone().map(|point| (point.values as f64, value(point).0));
        let color = HSLColor(0.55 + 0.3 * f64::from(log2m - LOG2M.start()) / 7.0, 0.7, 0.45);
        chart
            .draw_series(LineSeries::new(ertl, color.stroke_width(2)))?
            .label(format!("ertl, log2m {log2m}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        if log2m == USUAL_LOG2M {
            let classic = of_size.map(|point| (point.values as f64, value(point).1));
            chart
                .draw_series(DashedLineSeries::new(classic, 6, 4, RED.stroke_width(2)))?
                .label(format!("classic, log2m {log2m}"))
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], RED.stroke_width(2)));
        }
    }
    for (position, goal) in goals.iter().enumerate() {
        let line = chart.draw_series(DashedLineSeries::new([(1.0, *goal), (1e9, *goal)], 2, 4, BLACK.into()))?;
        if position == 0 {
            line.label("goal").legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 11))
        .draw()?;
    Ok(())
}
