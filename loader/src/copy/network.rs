//! Addresses: family, bits of the netmask, whether it is a `cidr`, length, address (PostgreSQL, `utils/adt/network.c`).

use std::net::IpAddr;

/// PostgreSQL's own numbers, the same on every platform (`utils/inet.h`).
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 3;

/// The bytes of an `inet` or a `cidr`, without their length: an address in full, with or without `/bits`. A `cidr` has no bits
/// right of its mask.
pub fn address(text: &str, is_cidr: bool) -> Option<Vec<u8>> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let (family, address) = match address.parse().ok()? {
        IpAddr::V4(address) => (IPV4, address.octets().to_vec()),
        IpAddr::V6(address) => (IPV6, address.octets().to_vec()),
    };
    let most = address.len() * 8;
    let bits = match bits {
        None => most,
        Some(bits) if !bits.is_empty() && bits.len() <= 3 && bits.bytes().all(|byte| byte.is_ascii_digit()) => {
            bits.parse().ok().filter(|bits| *bits <= most)?
        }
        Some(_) => return None,
    };
    let has_host = (bits..most).any(|bit| address[bit / 8] & (0x80 >> (bit % 8)) != 0);
    if is_cidr && has_host {
        return None;
    }
    let mut bytes = vec![family, bits as u8, u8::from(is_cidr), address.len() as u8];
    bytes.extend_from_slice(&address);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_bytes_of_the_server() {
        assert_eq!(address("10.1.2.3", false), Some(vec![2, 32, 0, 4, 10, 1, 2, 3]));
        assert_eq!(address("10.1.2.3/8", false), Some(vec![2, 8, 0, 4, 10, 1, 2, 3]));
        assert_eq!(address("10.0.0.0/8", true), Some(vec![2, 8, 1, 4, 10, 0, 0, 0]));
        assert_eq!(address("0.0.0.0/0", true), Some(vec![2, 0, 1, 4, 0, 0, 0, 0]));
        let mut loopback = vec![3, 128, 0, 16];
        loopback.extend([0; 15]);
        loopback.push(1);
        assert_eq!(address("::1", false), Some(loopback));
        assert!(address("2001:db8::/32", true).is_some());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "10.1", "10.1.2.256", "10.1.2.3/33", "10.1.2.3/", "10.1.2.3/+8", "::1/129", "fe80::1%eth0", "a"]
        {
            assert_eq!(address(text, false), None, "{text}");
        }
        for text in ["10.1.2.3/8", "10.0.0.1/31", "2001:db8::1/64"] {
            assert_eq!(address(text, true), None, "{text}");
        }
    }
}
