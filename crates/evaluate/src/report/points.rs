//! Points on their way to a line: thinned, averaged, checked.

/// Above this many points a line is drawn faint with its moving average in bold.
pub(super) const MANY: usize = 40;
/// Above this many points a line is thinned, so that reports of long runs stay small.
pub(super) const MOST: usize = 500;

/// Whether a point can be drawn: finite, and small enough that ranges of such points are finite too.
pub(super) fn drawable(point: (f64, f64)) -> bool {
    point.0.abs() < 1e300 && point.1.abs() < 1e300
}

/// At most about [`MOST`] points: of each bucket the lowest and the highest, so that no spike is lost.
pub(super) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST {
        return points.to_vec();
    }
    let bucket = points.len().div_ceil(MOST / 2);
    points
        .chunks(bucket)
        .flat_map(|chunk| {
            let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let finite = || chunk.iter().filter(|p| p.1.is_finite());
            let mut ends: Vec<(f64, f64)> =
                finite().min_by(by).into_iter().chain(finite().max_by(by)).copied().collect();
            ends.sort_by(|a, b| a.0.total_cmp(&b.0));
            ends.dedup();
            if ends.is_empty() { vec![chunk[0]] } else { ends }
        })
        .collect()
}

/// Centred moving average over about a twelfth of the points, fewer at the ends; gaps stay gaps.
pub(super) fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 24).max(2);
    let mean = |index: usize| {
        let ends = index.saturating_sub(reach)..(index + reach + 1).min(points.len());
        let window = points[ends].iter().map(|p| p.1).filter(|y| y.is_finite());
        let (sum, count) = window.fold((0.0, 0), |(sum, count), y| (sum + y, count + 1));
        sum / f64::from(count)
    };
    points.iter().enumerate().map(|(index, &(x, y))| (x, if y.is_finite() { mean(index) } else { y })).collect()
}

/// Whether points scatter about their moving average by more than 4 % of its range.
pub(super) fn is_noisy(points: &[(f64, f64)], smooth: &[(f64, f64)]) -> bool {
    let pairs = || points.iter().zip(smooth).filter(|(point, mean)| drawable(**point) && drawable(**mean));
    let (sum, count) =
        pairs().fold((0.0, 0.0), |(sum, count), (point, mean)| (sum + (point.1 - mean.1).abs(), count + 1.0));
    let (low, high) = super::axes::extent(pairs().map(|(_, mean)| mean.1));
    sum / count > 0.04 * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moving_average_keeps_a_constant_and_gaps() {
        let mut points = vec![(0.0, 4.0); 60];
        points[30].1 = f64::NAN;
        let smooth = averaged(&points);
        assert!(smooth[30].1.is_nan() && smooth.iter().filter(|p| p.1 == 4.0).count() == 59);
    }

    #[test]
    fn smooth_curves_are_drawn_as_they_are() {
        let smooth: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), f64::from(i * i))).collect();
        let noisy: Vec<(f64, f64)> =
            smooth.iter().map(|p| (p.0, p.1 + if p.0 % 2.0 == 0.0 { 3e3 } else { 0.0 })).collect();
        assert!(!is_noisy(&smooth, &averaged(&smooth)) && is_noisy(&noisy, &averaged(&noisy)));
        let flat = [(0.0, 2.0); 50];
        assert!(!is_noisy(&flat, &averaged(&flat)) && !is_noisy(&[(0.0, f64::NAN)], &[(0.0, f64::NAN)]));
    }

    #[test]
    fn only_finite_points_are_drawable() {
        assert!(drawable((0.0, -1e299)));
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e305] {
            assert!(!drawable((odd, 0.0)) && !drawable((0.0, odd)));
        }
    }
}
