mov x0, #4
mov x1, #0
mov x8, #167
svc #0
mov x9, #0x4002
movk x9, #1, lsl #16
str x9, [sp, #-16]!
mov x0, #0
mov x1, sp
mov x2, #0
mov x3, #8
mov x8, #135
svc #0
wait:
mov x0, sp
mov x1, #0
mov x2, #0
mov x3, #8
mov x8, #137
svc #0
cmp x0, #15
b.eq done
cmp x0, #2
b.eq done
reap:
mov x0, #-1
mov x1, #0
mov x2, #1
mov x3, #0
mov x8, #260
svc #0
cmp x0, #0
b.gt reap
b wait
done:
mov x0, #0
mov x8, #93
svc #0
