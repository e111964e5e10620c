//! What addresses are.

use super::*;

#[test]
fn what_is_not_the_worlds_is_refused_with_its_class() {
    for (text, class) in [
        ("0.0.0.0", Class::Unspecified),
        ("0.1.2.3", Class::Unspecified),
        ("127.0.0.1", Class::Loopback),
        ("127.255.255.254", Class::Loopback),
        ("10.0.0.1", Class::Private),
        ("172.16.0.1", Class::Private),
        ("172.31.255.255", Class::Private),
        ("192.168.1.1", Class::Private),
        ("169.254.1.1", Class::LinkLocal),
        ("169.254.169.254", Class::Metadata),
        ("100.64.0.1", Class::Shared),
        ("100.127.255.255", Class::Shared),
        ("100.100.100.200", Class::Metadata),
        ("168.63.129.16", Class::Metadata),
        ("192.0.0.192", Class::Metadata),
        ("224.0.0.1", Class::Multicast),
        ("239.255.255.255", Class::Multicast),
        ("255.255.255.255", Class::Broadcast),
        ("192.0.2.1", Class::Documentation),
        ("198.51.100.1", Class::Documentation),
        ("203.0.113.1", Class::Documentation),
        ("198.18.0.1", Class::Benchmark),
        ("198.19.255.255", Class::Benchmark),
        ("192.0.0.1", Class::Reserved),
        ("192.88.99.1", Class::Reserved),
        ("240.0.0.1", Class::Reserved),
        ("::", Class::Unspecified),
        ("::1", Class::Loopback),
        ("fc00::1", Class::Private),
        ("fdff::1", Class::Private),
        ("fec0::1", Class::Private),
        ("fe80::1", Class::LinkLocal),
        ("febf::1", Class::LinkLocal),
        ("ff02::1", Class::Multicast),
        ("fd00:ec2::254", Class::Metadata),
        ("fd20:ce::254", Class::Metadata),
        ("2001:db8::1", Class::Documentation),
        ("3fff::1", Class::Documentation),
        ("2001:2::1", Class::Benchmark),
        ("100::1", Class::Reserved),
        ("5f00::1", Class::Reserved),
        ("2001:10::1", Class::Reserved),
        ("4000::1", Class::Reserved),
        // IPv4 in IPv6's clothes.
        ("::ffff:127.0.0.1", Class::Loopback),
        ("::ffff:10.0.0.1", Class::Private),
        ("::ffff:169.254.169.254", Class::Metadata),
        ("::127.0.0.1", Class::Embedded),
        ("::ffff:0:127.0.0.1", Class::Embedded),
        ("64:ff9b::10.0.0.1", Class::Embedded),
        ("64:ff9b::169.254.169.254", Class::Metadata),
        ("64:ff9b:1::a00:1", Class::Embedded),
        ("64:ff9b::8.8.8.8", Class::Embedded),
        ("2002:a00:1::", Class::Embedded),
        ("2002:a9fe:a9fe::", Class::Metadata),
        ("2002:808:808::", Class::Embedded),
        ("2001:0:a9fe:a9fe::", Class::Metadata),
        // The client's address in Teredo has its bits turned: 10.0.0.1.
        ("2001:0:808:808::f5ff:fffe", Class::Embedded),
        ("2001:0:808:808::5601:5601", Class::Metadata),
        // ISATAP in a prefix of the world.
        ("2600::5efe:a00:1", Class::Embedded),
        ("2600::200:5efe:a9fe:a9fe", Class::Metadata),
    ] {
        assert_eq!(class_of(ip(text)), class, "{text}");
        assert!(Addresses::default().check(ip(text)).is_err(), "{text}");
    }
}

#[test]
fn what_is_the_worlds_is_dialled_as_it_is_and_a_mapped_one_as_what_it_is() {
    for text in [
        "8.8.8.8",
        "1.1.1.1",
        "172.15.255.255",
        "172.32.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "169.253.0.1",
        "192.0.1.1",
        "198.17.255.255",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:200::1",
        "2001:4860:4860::8888",
    ] {
        assert_eq!(Addresses::default().check(ip(text)), Ok(ip(text)));
    }
    assert_eq!(
        Addresses::default().check(ip("::ffff:8.8.8.8")),
        Ok(ip("8.8.8.8"))
    );
}

#[test]
fn a_named_network_is_allowed_nevertheless_but_metadata_and_its_like_never() {
    let networks = [
        "127.0.0.0/8",
        "10.1.0.0/16",
        "100.64.0.0/10",
        "fd00::/8",
        "169.254.0.0/16",
        "fe80::/10",
        "224.0.0.0/4",
        "64:ff9b::/96",
        "0.0.0.0/8",
        "168.63.129.16",
    ];
    let networks = networks.map(|text| text.parse().unwrap());
    let addresses = Addresses::new(networks.to_vec());
    assert_eq!(
        addresses.in_vain().map(ToString::to_string).as_deref(),
        Some("169.254.0.0/16")
    );
    assert_eq!(Addresses::new(networks[..4].to_vec()).in_vain(), None);
    for text in [
        "127.0.0.1",
        "10.1.2.3",
        "100.64.0.1",
        "fd12::1",
        "64:ff9b::10.0.0.1",
    ] {
        assert_eq!(addresses.check(ip(text)), Ok(ip(text)), "{text}");
    }
    assert_eq!(addresses.check(ip("::ffff:10.1.2.3")), Ok(ip("10.1.2.3")));
    for text in [
        "10.2.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "169.254.1.1",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "224.0.0.1",
        "0.0.0.0",
        "64:ff9b::169.254.169.254",
        "::ffff:169.254.169.254",
    ] {
        assert!(addresses.check(ip(text)).is_err(), "{text}");
    }
}

proptest! {
    /// Against the standard library's own words, where it has some.
    #[test]
    fn nothing_that_the_library_calls_special_is_public(bits in any::<u32>()) {
        let v4 = Ipv4Addr::from_bits(bits);
        let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
            || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified();
        let class = class_of(v4.into());
        prop_assert!(!special || class != Class::Public, "{}", v4);
        // However it is dressed, it is not nearer.
        let [a, b, c, d] = v4.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        for v6 in [
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
            Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0x5efe, high, low),
        ] {
            let dressed = class_of(v6.into());
            prop_assert!(class == Class::Public || dressed != Class::Public, "{} {}", v4, v6);
            prop_assert!(!class.is_never() || dressed.is_never(), "{} {}", v4, v6);
        }
    }

    #[test]
    fn only_global_unicast_is_public(bits in any::<u128>()) {
        let v6 = Ipv6Addr::from_bits(bits);
        if class_of(v6.into()) == Class::Public {
            prop_assert!(v6.segments()[0] >> 13 == 1 || v6.to_ipv4_mapped().is_some());
        }
    }
}
