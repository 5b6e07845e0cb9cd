#!/bin/busybox sh
# /init of the initrd: the modules for the disk, the slot's root read-only, then systemd. Whatever fails is a panic,
# which restarts the machine (panic=) and so counts as an attempt of this slot.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do
	/bin/busybox insmod "/modules/$module" || echo "octogate: $module cannot be loaded"
done </modules/order
for word in $(/bin/busybox cat /proc/cmdline); do
	case $word in
	octogate.root=*) wanted=${word#*=} ;;
	init=*) init=${word#*=} ;;
	esac
done
found=
tries=0
until [ "$found" ] || [ $tries -ge 600 ]; do
	for uevent in /sys/class/block/*/uevent; do
		/bin/busybox grep -qx "PARTNAME=$wanted" "$uevent" 2>/dev/null || continue
		found=${uevent%/uevent}
		found=/dev/${found##*/}
	done
	[ "$found" ] || /bin/busybox usleep 100000
	tries=$((tries + 1))
done
echo "octogate: $wanted is $found"
/bin/busybox mount -t ext4 -o ro "$found" /root || exit 1
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /sys
/bin/busybox umount /proc
exec /bin/busybox switch_root /root "${init:-/sbin/init}"
