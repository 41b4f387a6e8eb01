//! A chart's paper: its measures, scales and round tick numbers.

use super::format::number;

// Units of the SVG's view box; the page scales it to the card.
pub(super) const WIDTH: f64 = 340.0;
pub(super) const HEIGHT: f64 = 208.0;
pub(super) const LEFT: f64 = 44.0;
pub(super) const RIGHT: f64 = 50.0;
pub(super) const TOP: f64 = 10.0;
pub(super) const BOTTOM: f64 = 34.0;

/// Where values land on the paper.
pub(super) struct Scale {
    pub x: (f64, f64),
    pub y: (f64, f64),
}

impl Scale {
    /// Paper position of a horizontal value.
    pub fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Paper position of a vertical value.
    pub fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }
}

/// Smallest and largest of at least one value.
pub(super) fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// A range that is not empty.
pub(super) fn widened((low, high): (f64, f64)) -> (f64, f64) {
    if high > low {
        return (low, high);
    }
    let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    (low - room, low + room)
}

/// A tick's number with as many decimals as its neighbours need.
pub(super) fn tick_text(tick: f64, all: &[f64]) -> String {
    let step = if all.len() > 1 { all[1] - all[0] } else { 0.0 };
    let largest = all.iter().fold(0.0, |size: f64, tick| size.max(tick.abs()));
    if !(1e-3..1.0).contains(&step) || largest >= 1e4 {
        return number(if tick.abs() < step / 1e6 { 0.0 } else { tick });
    }
    let digits = (-(step * 1.001).log10().floor()).clamp(0.0, 4.0) as usize;
    format!("{:.digits$}", if tick.abs() < step / 1e6 { 0.0 } else { tick }).replace('-', "−")
}

/// About `count` round numbers that cover a range: multiples of 1, 2 or 5 times a power of ten, at least two.
pub(super) fn ticks(range: (f64, f64), count: usize) -> Vec<f64> {
    let (low, high) = widened(range);
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough * 0.999);
    // Ranges beyond f64's resolution fall back on their ends.
    let step = step.filter(|step| step.is_finite() && low + step > low && high - step < high).unwrap_or(high - low);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    if !(1..=40).contains(&last.saturating_sub(first)) {
        return vec![low, high];
    }
    (first..=last).map(|index| index as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round_and_read_alike() {
        assert_eq!(ticks((0.0, 1.0), 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        let all = ticks((0.31, 0.52), 4);
        let texts: Vec<String> = all.iter().map(|tick| tick_text(*tick, &all)).collect();
        assert_eq!(texts, ["0.3", "0.4", "0.5", "0.6"]);
        let all = ticks((-0.02, 0.04), 4);
        let texts: Vec<String> = all.iter().map(|tick| tick_text(*tick, &all)).collect();
        assert_eq!(texts, ["−0.02", "0.00", "0.02", "0.04"]);
    }

    proptest! {
        #[test]
        fn ticks_cover_any_range(low in -1e9f64..1e9, span in 1e-6f64..1e9, count in 2usize..8) {
            let found = ticks((low, low + span), count);
            prop_assert!(found.len() >= 2 && found.len() <= 4 * count, "{:?}", found);
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
            let slack = 1e-6 * (span + low.abs() * 1e-6);
            prop_assert!(found[0] <= low + slack && *found.last().unwrap() >= low + span - slack, "{:?}", found);
        }
    }
}
