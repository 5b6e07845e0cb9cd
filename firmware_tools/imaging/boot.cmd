# Chooses a slot, counts the attempt, boots it. For every board; U-Boot's own commands set devtype, devnum and *_addr_r.
#
# The counters are U-Boot's environment format (CRC, then NAME=value) in the raw partition `ubootenv`: 16 KiB that RAUC
# and fw_setenv write too. All of it is in the first sector, so that a power cut leaves the old or the new one.
# BOOT_ORDER "A B" or "B A" is set by RAUC; BOOT_x_LEFT attempts are left; `rauc status mark-good` sets 3 again.
setenv octo_slot
${devtype} dev ${devnum}
part start ${devtype} ${devnum} ubootenv octo_env
${devtype} read ${kernel_addr_r} ${octo_env} 0x20
if env import -c ${kernel_addr_r} 0x4000 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT; then
	echo "octogate: order ${BOOT_ORDER}, left A ${BOOT_A_LEFT}, B ${BOOT_B_LEFT}"
else
	echo "octogate: no counters yet"
	setenv BOOT_ORDER "A B"
	setenv BOOT_A_LEFT 3
	setenv BOOT_B_LEFT 3
fi
for slot in ${BOOT_ORDER}; do
	if test -n "${octo_slot}"; then
		true
	elif test "${slot}" = "A" -a ${BOOT_A_LEFT} -gt 0; then
		setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1
		setenv octo_slot A
		setenv octo_part rootA
	elif test "${slot}" = "B" -a ${BOOT_B_LEFT} -gt 0; then
		setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1
		setenv octo_slot B
		setenv octo_part rootB
	fi
done
if test -z "${octo_slot}"; then
	echo "octogate: every slot has used up its attempts; all begin again"
	setenv BOOT_A_LEFT 3
	setenv BOOT_B_LEFT 3
fi
env export -c -s 0x4000 ${kernel_addr_r} BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT
${devtype} write ${kernel_addr_r} ${octo_env} 0x20
if test -n "${octo_slot}"; then
	part number ${devtype} ${devnum} ${octo_part} octo_number
	echo "octogate: slot ${octo_slot}"
	setenv bootargs "@CMDLINE@ octogate.root=${octo_part} rauc.slot=${octo_slot}"
	if load ${devtype} ${devnum}:${octo_number} ${kernel_addr_r} /boot/vmlinuz; then
		if load ${devtype} ${devnum}:${octo_number} ${ramdisk_addr_r} /boot/initrd.img; then
			booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr}
		fi
	fi
	echo "octogate: slot ${octo_slot} cannot be booted"
fi
reset
