//! Settings that are one of several names.

use crate::error::{Error, Result};

/// An enum whose variants have the names that a setting uses, in TOML, flags and logs alike.
macro_rules! choice {
    ($(#[$meta:meta])* $type:ident, $key:literal { $($(#[$doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $type { $($(#[$doc])* #[serde(rename = $name)] $variant,)* }
        impl $type {
            /// The names, in order.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The name used in settings.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The choice called `name`. Errors: [`Error::Setting`](crate::Error::Setting) listing all.
            pub fn by_name(name: &str) -> $crate::error::Result<Self> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => $crate::choice::refuse($key, Self::NAMES, name),
                }
            }
        }
    };
}
pub(crate) use choice;

/// The refusal of a name that is none of `names`.
pub(crate) fn refuse<T>(key: &str, names: &[&str], found: &str) -> Result<T> {
    Err(Error::Setting {
        key: key.into(),
        expected: format!("one of {}", names.join(", ")),
        found: format!("`{found}`"),
    })
}
